"""Which forecast is taken, and how wide it is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.platform.planner.forecasting.arima import Arima
from stafette.platform.planner.forecasting.averages import Constant, MovingAverage
from stafette.platform.planner.forecasting.contest import (
    Contest,
    backtest,
    level,
    usual_forecasters,
)
from stafette.platform.planner.forecasting.kalman import LocalTrend
from stafette.platform.planner.forecasting.seasonal import Seasonal, find_season
from stafette.platform.planner.forecasting.smoothing import HoltWinters

HORIZON = 6


def counted(rates, seconds=10.0, seed=3):
    """Return rates as a counter of requests that come at random would see them."""
    return np.random.default_rng(seed).poisson(np.asarray(rates) * seconds) / seconds


def judged(rates, **options):
    contest = Contest(HORIZON, 0.95, 10.0, **options)
    for value in counted(rates):
        contest.observe(value)
    return contest


def test_constant_goes_on_as_the_last_value_and_average_as_the_mean():
    series = np.array([1.0, 2.0, 6.0])

    assert Constant().path(series, 2).tolist() == [6.0, 6.0]
    assert MovingAverage(2).path(series, 2).tolist() == [4.0, 4.0]


@pytest.mark.parametrize("forecaster", [HoltWinters(0.8, 0.5), LocalTrend(), Arima()])
def test_line_is_seen_to_go_on(forecaster):
    series = np.arange(60.0)

    ahead = forecaster.path(series, 3)

    assert ahead[-1] == pytest.approx(62, abs=2)
    assert list(ahead) == sorted(ahead)


def test_arima_finds_how_a_series_falls_back():
    rng, series = np.random.default_rng(1), [0.0]
    for shock in rng.normal(size=4_000):
        series.append(0.8 * series[-1] + shock)
    series.append(10.0)

    ahead = Arima(1, 0, 0).path(np.array(series), 3)

    assert ahead == pytest.approx([8.0, 6.4, 5.1], abs=0.5)


def test_season_is_found_and_taken_up_again():
    series = 5 + 4 * np.sin(2 * np.pi * np.arange(130) / 40)

    assert find_season(series) == 40
    assert Seasonal().path(series, 5) == pytest.approx(
        5 + 4 * np.sin(2 * np.pi * np.arange(130, 135) / 40), abs=0.3
    )


def test_noise_and_a_line_have_no_season():
    assert find_season(np.arange(100.0)) is None
    assert find_season(np.ones(100)) is None


def test_long_mean_wins_where_nothing_changes():
    contest = judged(np.full(120, 5.0))

    forecast = contest.forecast()

    assert forecast.model.startswith("mean")
    assert forecast.upper == pytest.approx(5.0, rel=0.12)


def test_season_wins_where_there_is_one():
    some = [MovingAverage(6), Constant(), HoltWinters(), Seasonal()]

    costs = judged(5 + 4 * np.sin(2 * np.pi * np.arange(300) / 60), forecasters=some).costs

    assert min(costs, key=costs.get) == "seasonal"


def test_interval_is_wide_where_more_than_counting_is_uncertain():
    rng = np.random.default_rng(5)
    calm, wild = judged(np.full(120, 5.0)), judged(rng.choice([1.0, 9.0], 120))

    narrow, wide = calm.forecast(), wild.forecast()

    assert wide.upper - wide.middle > 4 * (narrow.upper - narrow.middle)


def test_levels_before_a_jump_are_forgotten_by_those_that_know_only_levels():
    contest = Contest(HORIZON, 0.95, 10.0, [MovingAverage(90)])
    for value in [1.0] * 50:
        contest.observe(value)

    contest.shift()
    contest.observe(10.0)

    assert contest.forecast().middle == 10.0


def test_backtest_tells_what_each_model_would_have_cost():
    costs = backtest([5.0] * 60, HORIZON)

    assert set(costs) == {f.name for f in usual_forecasters()}
    assert costs["constant"] < 0.1


def test_level_is_that_of_the_higher_half():
    assert level(np.array([1.0, 1.0, 4.0, 6.0])) == 5.0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=80))
def test_forecast_is_a_number_whatever_came(values):
    contest = Contest(HORIZON, 0.95, 10.0)
    for value in values:
        contest.observe(value)

    forecast = contest.forecast()

    assert 0 <= forecast.lower <= forecast.middle + 1e-6
    assert forecast.middle <= forecast.upper < np.inf
