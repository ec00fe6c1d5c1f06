"""What the planner wants, moment after moment."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.platform.planner.moments import MODEL, Moments, planner

from stafette.platform.config import Config
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.planner.config import PlannerConfig, PoolLimits, SloConfig
from stafette.platform.planner.observation import Finished, Observation, PoolState
from stafette.platform.planner.planner import Planner
from stafette.platform.planner.pool_spec import PoolSpec
from stafette.router.performance import StepReport


def total(plan):
    return sum(plan.replicas.values())


def test_planner_that_starts_changes_nothing_at_first():
    moments = Moments(planner(), prefill=3, decode=2)

    plan = moments.step(1.0)

    assert plan.replicas == {"prefill": 3, "decode": 2}
    assert plan.explanation.decided_by == "too little was seen yet"


def test_more_requests_get_more_replicas_within_seconds():
    moments = Moments(planner(), startup_s=60.0)
    moments.go_on(120, rate=2.0)
    before = total(moments.plans[-1])

    plan = moments.go_on(6, rate=40.0)

    assert total(plan) >= before + 3


def test_constant_load_is_left_in_peace():
    moments = Moments(planner(interval_s=10.0), prefill=2, decode=2, pace_s=10.0)
    moments.go_on(600, rate=14.0)
    settled = len(moments.changes)

    moments.go_on(3_000, rate=14.0)

    assert len(moments.changes) - settled <= 2


def test_fewer_replicas_are_wanted_only_when_that_was_enough_for_long():
    moments = Moments(planner(hold_down_s=100.0), prefill=6, decode=4)
    moments.go_on(90, rate=2.0)
    assert total(moments.plans[-1]) == 10

    plan = moments.go_on(60, rate=2.0)

    assert total(plan) <= 3
    assert plan.violations == ()


def test_nobody_asks_and_after_a_while_nobody_is_there():
    moments = Moments(planner(idle_s=100.0, startup_s=1.0))
    moments.go_on(120, rate=3.0)
    moments.go_on(90, rate=0.0)
    assert total(moments.plans[-1]) > 0

    plan = moments.go_on(30, rate=0.0)

    assert total(plan) == 0
    assert plan.explanation.decided_by == "idle"


def test_who_cannot_afford_a_slow_return_keeps_workers_until_the_window_is_over():
    moments = Moments(planner(idle_s=100.0, promise_window_s=900.0))
    moments.go_on(120, rate=3.0)  # of 360 requests 18 may be late; a return costs 180

    plan = moments.go_on(600, rate=0.0)

    assert total(plan) > 0
    assert total(moments.go_on(400, rate=0.0)) == 0


def test_load_that_comes_back_finds_as_much_asked_for_as_there_was_before():
    moments = Moments(planner(idle_s=100.0, promise_window_s=300.0), prefill=4, decode=3)
    moments.go_on(100, rate=20.0)
    before = moments.plans[-1].explanation.needed
    moments.go_on(600, rate=0.0)
    assert total(moments.plans[-1]) == 0

    plan = moments.step(0.0, arrivals=1, waiting=1)

    assert total(plan) >= before["prefill"] + before["decode"]


def test_first_request_wakes_the_fleet_in_the_same_moment():
    moments = Moments(planner(idle_s=60.0))
    moments.go_on(60, rate=3.0)
    moments.go_on(120, rate=0.0)

    plan = moments.step(0.0, arrivals=1, waiting=1)

    assert total(plan) >= 1


def test_pool_with_a_minimum_is_never_emptied():
    moments = Moments(planner(least=1, idle_s=60.0))

    plan = moments.go_on(200, rate=0.0)

    assert plan.replicas == {"prefill": 1, "decode": 1}


def test_single_worker_does_both():
    moments = Moments(planner(hold_down_s=30.0))
    moments.go_on(120, rate=0.3)

    assert moments.roles == ["both"]


def test_longer_answers_turn_prefill_workers_into_decode_workers():
    moments = Moments(planner(), prefill=5, decode=2)
    moments.go_on(60, rate=12.0, prompt=3_000, output=20)
    before = moments.roles.count("decode")

    moments.go_on(40, rate=12.0, prompt=300, output=300)

    assert moments.roles.count("decode") > before
    assert "prefill" in moments.roles


def test_without_flips_no_role_changes():
    moments = Moments(planner(flips=False), prefill=5, decode=2)
    moments.go_on(40, rate=12.0, prompt=300, output=300)

    assert not any(plan.flips for plan in moments.plans)


def test_replicas_that_do_not_come_are_not_waited_for():
    limits = PoolLimits(min_replicas=1, startup_s=20.0, startup_limit_s=40.0)
    moments = Moments(planner(flips=False, limits=limits), comes=lambda pool, n: n < 1)
    moments.go_on(30, rate=20.0)
    assert total(moments.plans[-1]) > 2

    plan = moments.go_on(60, rate=20.0)

    assert plan.replicas == {"prefill": 1, "decode": 1}
    assert plan.explanation.decided_by == "start-up limit"
    assert plan.violations


def test_budget_is_kept_and_what_it_costs_is_told():
    moments = Moments(planner(max_gpus=3.0))

    plan = moments.go_on(60, rate=60.0)

    assert total(plan) == 3
    assert plan.explanation.decided_by == "max_gpus"
    assert "workers instead of 3" in plan.violations[0].remedy
    assert plan.violations[0].expected_ms > plan.violations[0].limit_ms


def test_cheaper_pool_of_a_role_grows_first():
    pools = {
        "prefill": PoolSpec(role="prefill", worker_class="p", model=MODEL),
        "cheap": PoolSpec(
            role="decode", worker_class="c", model=MODEL, limits=PoolLimits(cost_per_hour=0.5)
        ),
        "dear": PoolSpec(
            role="decode", worker_class="d", model=MODEL, limits=PoolLimits(cost_per_hour=2.0)
        ),
    }
    chosen = Planner(PlannerConfig(mode="on"), pools)
    moments = Moments(chosen)
    moments.targets = dict.fromkeys(pools, 1)

    plan = moments.go_on(30, rate=25.0)

    assert plan.replicas["cheap"] > plan.replicas["dear"] == 1


def test_who_has_least_under_way_is_let_go():
    moments = Moments(planner(hold_down_s=30.0), prefill=1, decode=4)
    moments.go_on(20, rate=2.0)

    plan = next(p for p in (moments.step(2.0) for _ in range(60)) if p.release)

    assert all(name.startswith(("prefill", "decode")) for name in plan.release)
    assert len(plan.release) == 5 - total(plan)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"at": 5.0}, "the clock has gone back"),
        ({"at": 500.0}, "the clock has jumped"),
        ({"at": math.nan}, "is no time"),
        ({"window_s": 0.0}, "window_s"),
        ({"arrivals": -1}, "arrivals"),
        ({"finished": [Finished(1, 1, math.nan)]}, "finished.ttft_ms = nan"),
        ({"pools": {"prefill": PoolState(target=1, ready=1)}}, "nothing is told of decode"),
    ],
)
def test_nonsense_holds_everything_as_it_is_and_says_why(told, reason):
    moments = Moments(planner(), prefill=2, decode=2)
    moments.go_on(60, rate=8.0)
    wanted = moments.plans[-1].replicas

    plan = moments.step(8.0, **told)

    assert reason in plan.held
    assert plan.replicas == wanted
    assert not plan.flips
    assert not plan.release


def test_after_a_hold_it_goes_on():
    moments = Moments(planner())
    moments.go_on(30, rate=2.0)
    moments.at += 1_000.0
    assert moments.step(2.0).held

    plan = moments.go_on(30, rate=2.0)

    assert plan.held is None


def test_pin_holds_a_pool_until_it_ends():
    chosen = planner()
    moments = Moments(chosen)
    moments.go_on(20, rate=1.0)

    chosen.pins.pin("decode", 7, until=moments.at + 30)

    plan = moments.step(1.0)
    assert plan.replicas["decode"] == 7
    assert plan.explanation.decided_by == "pin"
    assert "decode is pinned to 7" in " ".join(plan.explanation.notes)
    assert moments.go_on(40, rate=1.0).explanation.decided_by != "pin"


def test_unpin_ends_it_at_once_and_unknown_pools_are_named():
    chosen = planner()
    chosen.pins.pin("decode", 7, until=1e9)

    assert chosen.pins.unpin("decode")
    assert not chosen.pins.unpin("decode")
    with pytest.raises(InvalidSetting, match="there are prefill, decode"):
        chosen.pins.pin("encode", 1, until=10.0)
    with pytest.raises(InvalidSetting, match="every pin has an end"):
        chosen.pins.pin("decode", 1, until=math.inf)


def test_profile_of_another_model_is_doubted_and_what_workers_report_counts():
    chosen = planner()
    moments = Moments(chosen)
    slow = StepReport(wall_ms=100.0, decode_sequences=4, decode_kv_tokens=8_000)
    for _ in range(40):
        moments.step(1.0)
        seen = moments.observe(1.0, 2_000, 100)
        chosen.beliefs.learn([_with_steps(worker, slow) for worker in seen.workers])

    plan = moments.step(1.0)

    assert any("is it another model's?" in note for note in plan.explanation.notes)
    learned = chosen.beliefs.decode.performance.decode_step_ms(4, 8_000)
    assert learned == pytest.approx(100.0, rel=0.2)


def _with_steps(worker, step):
    return replace(worker, steps=[step])


def test_every_plan_is_kept_with_what_it_was_made_of():
    chosen = planner(plans_kept=10)
    moments = Moments(chosen)
    moments.go_on(30, rate=5.0)

    assert len(chosen.plans) == 10
    told = chosen.plans[-1].explanation
    assert told.observed["prompt_tokens"] == pytest.approx(2_000)
    assert told.predicted["rate_upper"] >= told.predicted["rate_middle"] > 0
    assert told.capacity["prefill_tokens_per_s"] > 0
    assert sum(told.needed.values()) >= 1


def test_pools_without_any_that_decodes_are_refused():
    with pytest.raises(InvalidSetting, match="must have one that decodes"):
        Planner(PlannerConfig(), {"prefill": PoolSpec(role="prefill")})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PoolLimits(min_replicas=3, max_replicas=2), "max_replicas = 2"),
        (lambda: PoolLimits(startup_s=math.nan), "startup_s"),
        (lambda: SloConfig(ttft_percentile=100.0), "ttft_percentile"),
        (lambda: SloConfig(itl_ms=0.0), "itl_ms"),
        (
            lambda: PlannerConfig(max_gpus=1.0, pools={"decode": PoolLimits(min_replicas=2)}),
            "less than the pools' min_replicas take",
        ),
        (lambda: PlannerConfig(quantile=1.0), "quantile"),
        (lambda: Config(planner=PlannerConfig(mode="on")), "must name those"),
        (
            lambda: Config(planner=PlannerConfig(pools={"encode": PoolLimits()})),
            "encode.*is no pool; there are: prefill, decode",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(make, message):
    with pytest.raises(InvalidSetting, match=message):
        make()


@settings(max_examples=6, deadline=None)
@given(
    rates=st.lists(st.floats(0, 300), min_size=1, max_size=4),
    prompt=st.integers(1, 50_000),
    output=st.integers(1, 3_000),
    flips=st.booleans(),
    budget=st.sampled_from([None, 2.0, 7.0]),
)
def test_limits_and_budget_hold_whatever_comes(rates, prompt, output, flips, budget):
    moments = Moments(planner(flips, least=1, most=6, max_gpus=budget))

    for rate in rates:
        moments.go_on(6, rate, prompt, output)

    for plan in moments.plans:
        assert all(1 <= count <= 6 for count in plan.replicas.values())
        assert budget is None or total(plan) <= budget


def test_observation_without_workers_is_no_reason_to_fail():
    chosen = planner()
    pools = {name: PoolState(target=0, ready=0) for name in ("prefill", "decode")}

    plan = chosen.plan(Observation(at=1.0, window_s=1.0, arrivals=0, pools=pools))

    assert plan.held is None
    assert not plan.flips
