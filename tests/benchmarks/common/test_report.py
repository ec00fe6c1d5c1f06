"""A report judges its goals, and shows them."""

import json
import math

import pytest

from benchmarks.common.report import Goal, Report


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal("fast", 2.5, at_least=2.5), True),
        (Goal("fast", 2.4, at_least=2.5), False),
        (Goal("soon", 3.0, at_most=3.0), True),
        (Goal("soon", 3.1, at_most=3.0), False),
        (Goal("fast", None, at_least=2.5), None),
        (Goal("fast", math.nan, at_least=2.5), False),
    ],
)
def test_a_goal_is_met_up_to_its_bound_and_unknown_when_not_measured(goal, met):
    assert goal.met is met


@pytest.mark.parametrize(("value", "status"), [(2.0, 0), (0.5, 1), (None, 0)])
def test_only_a_missed_goal_fails_the_benchmark(value, status):
    report = Report("a benchmark")
    report.goal(Goal("ratio", value, at_least=1.0))

    assert report.finish() == status


def test_text_shows_tables_figures_goals_and_notes():
    report = Report("a benchmark")
    report.table("speed", ["case", "tok/s"], [["one", 12.0], ["two", None]])
    report.figure("start s", 1.5)
    report.goal(Goal("start", 1.5, at_most=3.0))
    report.note("peer skipped")

    text = report.text()

    assert text.startswith("a benchmark\n")
    assert "| one  |  12.0 |" in text
    assert "| two  |     – |" in text
    assert "| start s |  1.50 |" in text
    assert "≤ 3.00" in text
    assert "note: peer skipped" in text


def test_json_holds_the_same_values_unrounded(tmp_path):
    report = Report("a benchmark")
    report.table("speed", ["case", "tok/s"], [["one", 12.345]])
    report.goal(Goal("speed", 12.345, at_least=20.0))

    report.finish(str(tmp_path / "out.json"))

    written = json.loads((tmp_path / "out.json").read_text())
    assert written["tables"] == {"speed": [{"case": "one", "tok/s": 12.345}]}
    assert written["goals"][0]["met"] is False
    assert written["machine"]["cores"] >= 1
