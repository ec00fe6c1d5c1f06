"""How few workers are enough, and what is said where none are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.platform.planner.config import SloConfig
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.shape import Shape
from stafette.platform.planner.sizing import Demand, Sizer, Split
from stafette.platform.planner.velocity import Velocity
from stafette.router.performance import Performance

SLO = SloConfig(ttft_ms=1_000, ttft_percentile=95, itl_ms=40, itl_percentile=95)
MODEL = EngineModel(
    performance=Performance(
        step_ms=10, prefill_ms_per_token=0.1, prefill_ms_per_pair=0, decode_ms_per_seq=1
    )
)
SHAPE = Shape.of(prompt=2_000, output=100)


def demand(rate, **options):
    return Demand(rate=rate, shape=options.pop("shape", SHAPE), **options)


def test_fewest_workers_keep_the_promise_and_one_fewer_of_either_does_not():
    sizer = Sizer(MODEL, SLO)
    asked = demand(20.0)

    split = sizer.apart(asked).split

    assert sizer.keeps(asked, split)
    assert not sizer.keeps(asked, Split(prefill=split.prefill - 1, decode=split.decode))
    assert not sizer.keeps(asked, Split(prefill=split.prefill, decode=split.decode - 1))


def test_cached_prompts_need_fewer_prefill_workers():
    sizer = Sizer(MODEL, SLO)
    cached = Shape.of(prompt=2_000, output=100, cached=1_500)

    split, fewer = (sizer.apart(demand(30.0, shape=s)).split for s in (SHAPE, cached))

    assert fewer.prefill < split.prefill / 2
    assert fewer.decode == split.decode


def test_stricter_percentile_takes_more_workers():
    strict = SloConfig(ttft_ms=500, ttft_percentile=99.9, itl_ms=40, itl_percentile=95)
    mild = SloConfig(ttft_ms=500, ttft_percentile=60, itl_ms=40, itl_percentile=95)
    asked = demand(20.0)

    assert (
        Sizer(MODEL, strict).apart(asked).split.prefill
        > Sizer(MODEL, mild).apart(asked).split.prefill
    )


def test_bursts_take_more_workers_than_random_arrivals():
    sizer = Sizer(MODEL, SLO)

    calm, bursty = (sizer.apart(demand(50.0, dispersion=d)).split for d in (1.0, 16.0))

    assert bursty.prefill > calm.prefill
    assert bursty.decode > calm.decode


def test_what_piled_up_takes_workers_of_both_kinds():
    sizer = Sizer(MODEL, SLO)

    plain = sizer.apart(demand(20.0)).split
    piled = sizer.apart(demand(20.0, backlog_ms=4_000)).split

    assert piled.prefill >= plain.prefill + 3
    assert piled.decode > plain.decode


def test_what_piled_up_is_worked_off_and_no_percentile_is_kept_for_it():
    sizer = Sizer(MODEL, SloConfig(ttft_ms=1_000, ttft_percentile=99, itl_ms=40))
    each_ms = sizer.mean_prompt_ms(SHAPE)

    piled = sizer.apart(demand(5.0, backlog_ms=2.5 * each_ms)).split
    as_if_it_came = sizer.apart(demand(7.5)).split

    assert 7.5 * each_ms < 1_000 * piled.prefill
    assert piled.prefill < as_if_it_came.prefill


def test_one_worker_that_does_both_is_enough_for_little():
    sizer = Sizer(MODEL, SLO)

    assert sizer.together(demand(0.2)).split == Split(both=1)
    assert sizer.apart(demand(0.2)).split.total == 2


def test_tokens_bound_a_pool_whatever_the_limits_allow():
    velocity = Velocity.of(MODEL, SHAPE, SLO)

    least = velocity.least(10.0, SHAPE)

    assert velocity.prefill == pytest.approx(2_000 / 0.21)  # 210 ms a prompt
    assert least.prefill == 3  # 20,000 tokens a second


def test_impossible_itl_is_told_and_does_not_ask_for_the_moon():
    sizer = Sizer(MODEL, SloConfig(ttft_ms=1_000, itl_ms=5))
    asked = demand(5.0)

    split = sizer.apart(asked).split
    broken = sizer.violations(asked, split, split)

    assert split.total < 20
    assert [each.target for each in broken] == ["itl"]
    assert "faster workers, or slo.itl_ms of at least 12" in broken[0].remedy


def test_prompts_that_are_late_alone_are_told_and_ask_for_nobody():
    sizer = Sizer(MODEL, SloConfig(ttft_ms=100, itl_ms=40))
    asked = demand(5.0)

    sizing = sizer.apart(asked)
    broken = sizer.violations(asked, sizing.split, sizing.split)

    assert sizing.split.prefill <= 2
    assert sizing.notes == (
        "100.0% of prompts take longer than slo.ttft_ms = 100 even on an idle worker",
    )
    assert "slo.ttft_ms of at least" in broken[0].remedy


def test_too_few_workers_are_told_with_how_many_would_do():
    sizer = Sizer(MODEL, SLO)
    asked = demand(20.0)
    needed = sizer.apart(asked).split

    broken = sizer.violations(asked, Split(prefill=1, decode=needed.decode), needed)

    assert [each.target for each in broken] == ["ttft"]
    assert broken[0].expected_ms == float("inf")
    assert broken[0].remedy == f"{needed.total} workers instead of {needed.decode + 1}"


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 200), st.floats(1.0, 3.0), st.integers(50, 20_000), st.integers(2, 2_000))
def test_more_requests_never_take_fewer_workers(rate, factor, prompt, output):
    sizer, shape = Sizer(MODEL, SLO), Shape.of(prompt=prompt, output=output)

    fewer = sizer.apart(demand(rate, shape=shape)).split
    more = sizer.apart(demand(factor * rate, shape=shape)).split

    assert more.prefill >= fewer.prefill >= 1
    assert more.decode >= fewer.decode >= 1
