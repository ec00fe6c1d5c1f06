"""The signals that decisions rest on: jumps, shapes, start-ups, patience, local work."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.platform.planner.config import PoolLimits
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.holding import Patience
from stafette.platform.planner.local_work import LocalWork
from stafette.platform.planner.observation import (
    Finished,
    Observation,
    PoolState,
    Started,
    WorkerState,
)
from stafette.platform.planner.shape import Shape, ShapeSeen
from stafette.platform.planner.startups import Startups
from stafette.platform.planner.traffic import Traffic
from stafette.router.performance import Performance, StepReport


def seconds(traffic, start, count, arrivals):
    for number in range(count):
        traffic.see(Observation(at=start + number, window_s=1.0, arrivals=arrivals))
    return traffic.rates()


def test_jump_is_seen_within_seconds_and_its_height_told():
    traffic = Traffic(10.0, 70.0, 0.95)
    seconds(traffic, 1.0, 100, 2)

    rates = seconds(traffic, 101.0, 4, 20)

    assert rates.jumped
    assert rates.upper == pytest.approx(20, rel=0.3)


def test_level_that_rises_while_it_is_counted_is_a_jump_all_the_same():
    traffic = Traffic(10.0, 70.0, 0.95)
    seconds(traffic, 1.0, 100, 1)

    for number in range(30):  # no three seconds tell enough, and forecasts follow from bin to bin
        traffic.see(Observation(at=101.0 + number, window_s=1.0, arrivals=(2, 4, 3)[number % 3]))

    assert traffic.jumps == 1
    assert traffic.rates().upper == pytest.approx(3.0, rel=0.2)


def test_what_a_lucky_second_shows_of_a_jump_is_not_asked_for_at_once():
    traffic = Traffic(10.0, 70.0, 0.95)
    seconds(traffic, 1.0, 100, 2)

    lucky = seconds(traffic, 101.0, 1, 40).upper
    rates = seconds(traffic, 102.0, 20, 12)

    assert lucky < 40 / 3
    assert rates.upper == pytest.approx(12, rel=0.15)


def test_random_ups_and_downs_are_no_jump():
    traffic = Traffic(10.0, 70.0, 0.95)
    for number in range(300):
        arrivals = (5, 3, 8, 4, 6, 2, 7)[number % 7]
        traffic.see(Observation(at=1.0 + number, window_s=1.0, arrivals=arrivals))

    assert traffic.jumps == 0


def test_fall_lets_the_past_be_forgotten():
    traffic = Traffic(10.0, 70.0, 0.95)
    seconds(traffic, 1.0, 300, 20)

    rates = seconds(traffic, 301.0, 60, 2)

    assert rates.middle == pytest.approx(2.0, rel=0.1)


def test_other_prompts_push_out_the_old_ones_at_once():
    seen = ShapeSeen(Shape.of(prompt=10, output=10))
    seen.see([Started(1_000)] * 600, [Finished(1_000, 50, 1.0)] * 600)

    seen.see([Started(5_000)] * 80, [])

    assert seen.shape().mean_prompt == pytest.approx(5_000, rel=0.1)
    assert seen.shape().mean_output == 50


def test_long_answers_count_for_as_long_as_they_last():
    seen = ShapeSeen(Shape.of(prompt=10, output=10))
    seen.see([Started(100)], [Finished(100, 10, 1.0), Finished(900, 90, 1.0)])

    assert seen.shape().mean_context == pytest.approx((10 * 105 + 90 * 945) / 100)


def pool(target, ready):
    return {"decode": PoolState(target=target, ready=ready, starting=target - ready)}


def test_start_up_time_is_learned_from_those_who_came():
    startups = Startups({"decode": PoolLimits(startup_s=60.0)})
    startups.see(0.0, pool(1, 1))
    startups.see(10.0, pool(2, 1))

    startups.see(30.0, pool(2, 2))

    assert startups.startup_s("decode") == pytest.approx(60 + 0.3 * (20 - 60))


def test_replica_that_does_not_come_caps_its_pool_for_a_while():
    limits = PoolLimits(startup_s=10.0, startup_limit_s=20.0)
    startups = Startups({"decode": limits})
    startups.see(0.0, pool(3, 2))
    assert startups.pending

    startups.see(21.0, pool(3, 2))

    assert startups.stuck(21.0) == ["decode"]
    assert startups.cap("decode", 21.0) == 2
    assert startups.cap("decode", 200.0) == limits.max_replicas


def test_patience_waits_for_the_highest_need_to_be_long_ago():
    patience = Patience(100.0)
    for at, need in ((0.0, 5), (50.0, 2), (99.0, 2)):
        patience.note(at, need)
    assert patience.lowest(99.0, 5) == 5

    patience.note(101.0, 2)

    assert patience.lowest(101.0, 5) == 2


def test_who_had_to_take_a_reduction_back_waits_longer_before_the_next():
    patience = Patience(100.0)
    patience.shrank(1_000.0, before=4)

    patience.grew(1_200.0)

    assert patience.hold_s == 400.0


def test_only_the_size_that_was_missed_waits_longer_and_what_is_above_it_goes_as_ever():
    patience = Patience(100.0)
    patience.shrank(1_000.0, before=4)
    patience.grew(1_200.0)
    for at, need in ((1_200.0, 4), (1_290.0, 9), (1_300.0, 2), (1_350.0, 2)):
        patience.note(at, need)
    assert patience.lowest(1_350.0, 9) == 9

    patience.note(1_400.0, 2)
    assert patience.lowest(1_400.0, 9) == 4

    patience.note(1_800.0, 2)
    assert patience.lowest(1_800.0, 4) == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(1.0, 60.0), st.integers(0, 12)), min_size=1, max_size=60))
def test_nobody_goes_who_was_needed_a_moment_ago_whatever_was_regretted(needs):
    patience, at, current = Patience(100.0), 0.0, 6
    seen = []
    for seconds, need in needs:
        at += seconds
        patience.note(at, need)
        seen.append((at, need))
        if need > current:
            patience.grew(at)
            current = need
            continue
        lowest = patience.lowest(at, current)
        assert max(n for when, n in seen if when >= at - 100.0) <= lowest <= current
        if lowest < current:
            patience.shrank(at, before=current)
            current = lowest


def test_reduction_that_lasted_for_long_was_worth_it():
    patience = Patience(100.0)
    patience.shrank(1_000.0, before=4)

    patience.grew(2_000.0)

    assert patience.hold_s == 100.0


def decodes(*steps):
    return [WorkerState(name="w", pool="decode", role="decode", steps=steps)]


MODEL = EngineModel(
    performance=Performance(prefill_ms_per_token=0.2, prefill_ms_per_pair=0.0), block_size=256
)
SHAPE = Shape.of(prompt=2_000, output=10)


def test_prefilling_beside_many_answers_is_counted_for_each_request():
    local = LocalWork()
    step = StepReport(wall_ms=30.0, prefill_tokens=100, decode_sequences=5)
    local.see(1.0, [], MODEL, SHAPE, 4.0)
    local.see(2.0, decodes(step), MODEL, SHAPE, 4.0)  # whose role is known from now on

    found = local.see(3.0, decodes(*[step] * 40), MODEL, SHAPE, 4.0)

    assert found == pytest.approx(40 * 100 * 0.2 / (40 * 5 / 10))


def test_prefilling_by_everybody_while_prompts_pile_up_is_not_counted_on():
    local = LocalWork()
    step = StepReport(wall_ms=400.0, prefill_tokens=2_000, decode_sequences=8)
    local.see(1.0, decodes(step), MODEL, SHAPE, 4.0)

    found = local.see(2.0, decodes(*[step] * 400), MODEL, SHAPE, 4.0, piled_up=True)

    assert found == pytest.approx(128 * 0.2)


def test_prefilling_of_workers_with_time_to_spare_is_not_counted_on():
    local = LocalWork()
    step = StepReport(wall_ms=400.0, prefill_tokens=2_000, decode_sequences=1)
    local.see(1.0, decodes(step), MODEL, SHAPE, 4.0)

    found = local.see(2.0, decodes(*[step] * 400), MODEL, SHAPE, 4.0)

    assert found == pytest.approx(128 * 0.2)  # half a block
