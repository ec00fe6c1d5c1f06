"""What may be late, and what is done with it: bursts, rest, errors carried to another level."""

import numpy as np
import pytest
from tests.platform.planner.moments import MODEL

from stafette.platform.planner.budget import Budget
from stafette.platform.planner.bursts import Bursts
from stafette.platform.planner.config import SloConfig
from stafette.platform.planner.demand import Demand, Split
from stafette.platform.planner.forecasting.carrying import as_far_off, carried
from stafette.platform.planner.observation import Finished
from stafette.platform.planner.resting import least_at_rest
from stafette.platform.planner.shape import Shape
from stafette.platform.planner.sizing import Sizer

SLO = SloConfig(ttft_ms=1_000, itl_ms=40, ttft_percentile=90, itl_percentile=99)
IN_TIME, LATE = Finished(100, 10, 500.0, 20.0), Finished(100, 10, 500.0, 50.0)


def seen(bursts, *stretches):
    for rate, count in stretches:
        for _ in range(count):
            bursts.see(rate, 1.0)
    return bursts


def few(may_be_late=0.01):
    return Bursts(4, 10.0, may_be_late)


def test_half_of_what_may_still_be_late_is_spent_at_once():
    budget = Budget(SLO, 60.0)

    budget.see(1.0, [IN_TIME] * 97 + [LATE] * 3)

    assert budget.at_once == pytest.approx((10 - 3) / 2)


def test_what_was_late_before_the_window_counts_no_more():
    budget = Budget(SLO, 60.0)
    budget.see(1.0, [LATE] * 100)

    budget.see(62.0, [IN_TIME] * 20)

    assert budget.at_once == pytest.approx(1.0)


def test_nothing_is_left_when_more_were_late_than_may_be():
    budget = Budget(SLO, 60.0)

    budget.see(1.0, [LATE] * 5)

    assert budget.at_once == 0.0


def test_burst_that_came_and_went_is_expected_again():
    bursts = seen(few(), (2.0, 40), (4.0, 6), (2.0, 40))

    assert bursts.room_for(2.0) == pytest.approx(4.0)


def test_smaller_level_is_given_room_in_proportion_and_a_larger_one_less():
    bursts = seen(few(), (4.0, 40), (9.0, 6), (4.0, 40))

    assert bursts.room_for(1.0) == pytest.approx(9 / 4)
    assert bursts.room_for(16.0) == pytest.approx((4 + 3 - 2) ** 2)


def test_level_that_stays_is_no_burst():
    bursts = seen(few(), (1.0, 40), (5.0, 200))

    assert bursts.room_for(5.0) == 0.0


def test_day_that_dawns_slowly_is_no_burst_as_high_as_its_noon():
    dawn = [(0.3 + 0.05 * number, 1) for number in range(60)]

    bursts = seen(few(), (0.3, 40), (0.8, 4), *dawn, (0.3, 40))

    assert bursts.room_for(2.0) < 4.0


def test_burst_upon_a_level_that_has_just_risen_is_seen_all_the_same():
    bursts = seen(few(), (0.5, 40), (2.0, 30), (6.0, 6), (2.0, 20))

    assert bursts.room_for(2.0) == pytest.approx(6.0, rel=0.1)


def test_no_burst_is_expected_upon_a_burst():
    bursts = seen(few(), (2.0, 40), (4.0, 6), (2.0, 40), (4.0, 6))

    assert bursts.room_for(4.0) == pytest.approx(4.0)


def test_bursts_of_fewer_requests_than_may_be_late_get_no_room():
    bursts = seen(few(may_be_late=0.5), (2.0, 40), (4.0, 6), (2.0, 40))

    assert bursts.room_for(2.0) == 0.0


def imagines(seed):
    bursts, rng = few(), np.random.default_rng(seed)
    for _ in range(360):
        bursts.see(rng.poisson(15.0) / 10.0, 1.0)
    return bursts.room_for(1.5) > 0


def test_random_arrivals_are_rarely_taken_for_bursts():
    assert sum(imagines(seed) for seed in range(20)) <= 2


def test_excursion_is_carried_without_a_leap_at_the_level_it_was_seen_at():
    base, height = np.array([4.0]), np.array([9.0])

    found = [carried(level, base, height) for level in (4.0 - 1e-9, 4.0 + 1e-9)]

    assert np.allclose(found, 9.0)


def test_forecast_that_was_off_is_as_far_off_higher_up_and_in_proportion_below():
    told, came = np.array([0.0, 2.0]), np.array([1.5, 3.0])

    assert as_far_off(4.0, told, came).tolist() == [5.5, 5.0]
    assert as_far_off(1.0, told[1:], came[1:]).tolist() == [1.5]


def test_who_rests_keeps_nobody_when_a_whole_start_up_time_may_be_late():
    demand = Demand(rate=2.0, shape=Shape.of(prompt=2_000, output=100))

    found = least_at_rest(Sizer(MODEL, SLO), demand, 60.0, may_be_late=120.0)

    assert found == Split()


def test_who_rests_keeps_the_more_the_less_may_be_late():
    sizer = Sizer(MODEL, SloConfig(ttft_ms=1_000, itl_ms=40, ttft_percentile=99))
    demand = Demand(rate=20.0, shape=Shape.of(prompt=2_000, output=100))

    totals = [least_at_rest(sizer, demand, 60.0, late).total for late in (2_000.0, 200.0, 0.0)]

    assert totals == sorted(totals)
    assert 0 == totals[0] < totals[2] == sizer.apart(demand).split.total
