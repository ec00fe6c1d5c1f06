"""The service is measured on real sockets, and only its right answers count."""

import asyncio

import pytest

from benchmarks.common.report import Report
from benchmarks.router import service
from benchmarks.router.service import WrongAnswer, latency, measure, tell
from stafette.router.service.client import RouterClient, Selected


def test_a_small_measurement_tells_every_figure():
    key = "k" * 20
    with service.service(key) as url:
        # As many as take the service many ticks of the clock that counts its CPU time.
        found = asyncio.run(measure(url, key, entries=2_000, count=200))
    report = Report("")

    tell(report, found)

    assert report.goals[0].met is None  # without Dynamo
    assert {goal.met for goal in report.goals[1:]} <= {True, False}
    rows = {str(row[0]): row[1:] for table in report.tables for row in table.rows}
    assert all(value > 0 for name in ("over HTTP", "1", "32") for value in rows[name])


async def test_a_wrong_worker_is_no_measurement(monkeypatch):
    async def select(self, request_id, token_ids, **options):
        return Selected(request_id, "1", None, None, 0, 0.0)

    monkeypatch.setattr(RouterClient, "select", select)

    with pytest.raises(WrongAnswer, match="1 was chosen, 0 holds the prompt"):
        await latency(RouterClient("http://127.0.0.1:1"), [([1], "0")])
