"""What a run comes to, as figures."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.platform.planner.config import SloConfig
from stafette.platform.twin.charts import line_chart
from stafette.platform.twin.gaps import Gaps
from stafette.platform.twin.html_report import html_of
from stafette.platform.twin.summary import summary_of
from stafette.platform.twin.tally import percentile


@given(st.lists(st.floats(1e-4, 100.0), min_size=1, max_size=50), st.integers(0, 50))
def test_percentiles_of_gaps_are_right_to_a_percent(values, cut):
    gaps = Gaps()
    for value in values[:cut]:
        gaps.add(value)
    if values[cut:]:
        gaps.add_all(np.array(values[cut:]), 1)

    assert gaps.count == len(values)
    assert gaps.mean_s == pytest.approx(sum(values) / len(values))
    for percent in (50, 99):
        assert gaps.percentile(percent) == pytest.approx(percentile(values, percent), rel=0.011)


def test_gaps_of_several_requests_are_counted_at_once():
    gaps = Gaps()

    gaps.add_all(np.array([0.01, 0.02]), 3)

    assert gaps.count == 6
    assert gaps.mean_s == pytest.approx(0.015)


def test_a_percentile_is_a_value_that_was_there():
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.0
    assert percentile([4.0, 1.0, 3.0, 2.0], 99) == 4.0
    assert percentile([], 50) == 0.0


def test_figures_come_as_json_with_timelines(stage):
    results = stage.run(stage.given((0.0, 100, 5), (15.0, 100, 5), duration_s=30.0))

    told = json.loads(results.to_json())

    assert told["requests"] == told["served"] == 2
    assert told["output_tokens"] == 10
    assert told["ttft_ms"]["p50"] == pytest.approx(20.0)
    assert told["gpu_hours"]["all"] == pytest.approx(30 / 3_600)
    assert [moment["at_s"] for moment in told["timeline"]] == [0.0, 10.0, 20.0, 30.0]
    assert [moment["arrivals"] for moment in told["timeline"]] == [0, 1, 1, 0]
    assert told["kept_by_bin"] == [[0.0, 1.0], [10.0, 1.0]]


def test_time_of_violation_is_that_of_bins_in_which_too_few_were_kept(stage):
    asked = [(0.0, 100, 5), *[(20.0, 9_000, 1)] * 4]

    results = stage.run(stage.given(*asked), slo=SloConfig(ttft_ms=2_000))

    assert [share for _, share in results.kept_by_bin] == [1.0, None, 0.25]
    assert results.violated_s() == 10.0


def test_a_summary_tells_the_figures(stage):
    told = summary_of(stage.run(stage.given((0.0, 100, 5))), took_s=2.0)

    assert "requests                      1, 0 failed" in told
    assert "100.00 % of requests" in told


class Page(HTMLParser):
    def __init__(self, text) -> None:
        super().__init__()
        self.tags = []
        self.links = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]


def test_the_report_needs_nothing_beside_it(stage):
    page = Page(html_of(stage.run(stage.given((0.0, 100, 5))), "<name>"))

    assert page.tags.count("svg") == 7
    assert not page.links
    assert "script" not in page.tags


@given(
    st.lists(st.tuples(st.floats(0, 1e5), st.none() | st.floats(0, 1e9)), max_size=5),
    st.booleans(),
)
def test_a_chart_can_be_drawn_of_anything(points, steps):
    chart = line_chart("A & B", {"series": sorted(points, key=lambda p: p[0])}, steps=steps)

    assert chart.startswith("<svg ")
    assert "nan" not in chart
    assert "A &amp; B" in chart
