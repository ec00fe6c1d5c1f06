"""Tables are Markdown whose columns line up."""

import pytest

from benchmarks.common.tables import cell, render


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (1234.5, "1,234"),
        (99.96, "100.0"),
        (3.14159, "3.14"),
        (0.01234, "0.0123"),
        (65536, "65,536"),
        (True, "yes"),
        ("name", "name"),
        (float("nan"), "nan"),
    ],
)
def test_a_cell_shows_three_digits_and_a_dash_for_nothing(value, shown):
    assert cell(value) == shown


def test_numbers_stand_right_and_words_left():
    table = render(["case", "tok/s"], [["a", 5.0], ["long name", 1500.0]])

    assert table.splitlines() == [
        "| case      | tok/s |",
        "|-----------|------:|",
        "| a         |  5.00 |",
        "| long name | 1,500 |",
    ]


def test_a_table_without_rows_keeps_its_head():
    assert render(["a", "b"], []).splitlines()[0] == "| a | b |"
