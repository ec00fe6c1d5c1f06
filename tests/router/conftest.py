"""What the router's tests share: both kinds of table."""

import pytest

from stafette.router.native import table as native
from stafette.router.table import BlockTable, PlainTable


@pytest.fixture(params=["native", "plain"])
def make_table(request):
    """Return a function that makes a table for so many entries."""

    def make(max_entries: int = 1_000_000) -> BlockTable:
        if request.param == "plain":
            return PlainTable(max_entries)
        table = native.make_table(max_entries)
        if table is None:
            pytest.skip("the native table is not built here")
        return table

    return make
