"""Who knows what comes has asked for it a start-up time before, and for no more."""

from dataclasses import replace

import pytest

from benchmarks.planner.measuring import OURS, _first_replicas
from benchmarks.planner.other_scenarios import others
from benchmarks.planner.policies.clairvoyant import SIGHTS, Clairvoyant, Foreseen, needs
from benchmarks.planner.scenarios import STEP_AT_S, scenarios
from stafette.platform.planner.demand import Split
from stafette.platform.planner.sizing import Sizer
from stafette.platform.twin.planned import Planned, planner_of, pool_specs
from stafette.platform.twin.workloads.making import make_workload

SCENARIO = next(s for s in scenarios(None, quick=False) if s.name.startswith("step"))
CONFIG = SCENARIO.config(1, {"prefill": 1, "decode": 1}, flips=True)


def needed(sight):
    model = pool_specs(CONFIG)["decode"].model
    foreseen = Foreseen.of(make_workload(CONFIG.workload).arrivals())
    return needs(foreseen, Sizer(model, SCENARIO.slo), model, sight)


def test_more_workers_are_needed_from_the_step_on():
    found = needed(SIGHTS[1])
    before = [s.total for s in found[: int(STEP_AT_S / 5) - 8]]
    after = [s.total for s in found[int(STEP_AT_S / 5) + 8 : -20]]

    assert max(before) < min(after)


def test_whoever_looks_less_closely_takes_fewer_workers_on():
    loose, close = (sum(s.total for s in needed(SIGHTS[place])) for place in (0, -1))

    assert loose < close


def test_workers_are_asked_for_a_start_up_time_before_they_are_needed():
    course = [Split(prefill=1, decode=1)] * 40 + [Split(prefill=2, decode=2)] * 40

    policy = Clairvoyant(Planned(planner_of(CONFIG)), course, startup_s=60.0)

    assert policy.first == {"prefill": 1, "decode": 1}
    assert policy._replicas(200.0 - 75.0) == {"prefill": 1, "decode": 1}
    assert policy._replicas(200.0 - 60.0) == {"prefill": 2, "decode": 2}


def test_nobody_goes_who_is_needed_again_before_a_start_would_take():
    busy, calm = Split(prefill=2, decode=2), Split(both=1)
    course = [busy] * 10 + [calm] * 8 + [busy] * 10 + [calm] * 40

    policy = Clairvoyant(Planned(planner_of(CONFIG)), course, startup_s=60.0)
    totals = [sum(policy._replicas(5.0 * place).values()) for place in range(40)]

    assert totals == [4] * 28 + [1] * 12


def test_loads_drawn_at_random_are_the_same_for_every_count():
    assert others(7)[:5] == others(5)
    assert len({s.name for s in others(7)}) == 7


@pytest.mark.parametrize("scenario", others(5), ids=lambda s: s.name)
def test_drawn_loads_come_as_often_as_they_say(scenario):
    whole = replace(scenario.workload, seed=1)
    came = sum(1 for _ in make_workload(whole).arrivals())

    assert came / whole.duration_s == pytest.approx(scenario.mean_s, rel=0.6)
    assert all(_first_replicas(scenario, OURS).values())
