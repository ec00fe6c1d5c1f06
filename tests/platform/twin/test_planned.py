"""The planner runs a twin's fleet: it sees what happens, and what it wants is done."""

import json
from dataclasses import replace

import pytest

from stafette.platform.planner.config import PlannerConfig
from stafette.platform.planner.plan import Plan, RoleFlip
from stafette.platform.twin.planned import Planned, carry_out, observe, planner_of

MANY = [(0.05 * number, 200, 80) for number in range(30)]


class Scripted:
    """A planner whose plans are known beforehand, by second."""

    def __init__(self, **plans) -> None:
        self.config = PlannerConfig(mode="on")
        self.seen = []
        self._plans = {int(at.removeprefix("at_")): plan for at, plan in plans.items()}

    def plan(self, observation):
        self.seen.append(observation)
        wanted = self._plans.get(round(observation.at), {})
        if not wanted:
            return Plan(at=observation.at, replicas={}, held="nothing to say")
        return Plan(at=observation.at, **wanted)


def test_the_planner_sees_what_came_what_was_answered_and_who_serves(stage):
    planner = Scripted()

    stage.run(stage.given(*MANY), pools={"prefill": 1, "decode": 1}, on_tick=Planned(planner))

    first, second, *rest = planner.seen
    assert (first.at, second.at, second.window_s) == (0.0, 1.0, 1.0)
    assert sum(seen.arrivals for seen in planner.seen) == 30
    assert second.started[0].prompt_tokens == 200
    finished = [each for seen in planner.seen for each in seen.finished]
    assert finished[0].output_tokens == 80
    assert finished[0].itl_ms == pytest.approx(10.0, rel=0.5)
    assert {w.name: w.role for w in second.workers} == {
        "prefill-1": "prefill",
        "decode-1": "decode",
    }
    decode = next(w for w in second.workers if w.role == "decode")
    assert decode.running > 3
    assert decode.used_kv_tokens > 3 * 200
    assert all(step.usable for step in decode.steps)
    assert decode.steps[-1].wall_ms == pytest.approx(10.0, rel=0.5)
    assert second.pools["decode"].ready == 1
    assert rest


def test_a_plan_is_carried_out_and_twice_is_once(stage):
    wanted = {
        "replicas": {"prefill": 1, "decode": 3},
        "flips": [RoleFlip("decode-2", "decode", "prefill")],
        "release": ["prefill-1"],
    }
    planned = Planned(Scripted(at_1=wanted, at_2={"replicas": {"prefill": 1, "decode": 3}}))

    stage.run(stage.given(*MANY, duration_s=10), pools={"prefill": 2, "decode": 2}, on_tick=planned)

    fleet = stage.twin.fleet
    assert set(fleet.replicas) == {"prefill-2", "decode-1", "decode-2", "decode-3"}
    assert fleet.replicas["decode-2"].role == "prefill"
    assert fleet.replicas["decode-3"].ready_s == 6.0
    assert {name: pool.changes for name, pool in fleet.pools.items()} == {"prefill": 1, "decode": 1}


def test_a_plan_that_is_held_or_tried_dry_changes_nothing(stage):
    wanted = {"replicas": {"workers": 5}}
    dry = Scripted(at_1=wanted)
    dry.config = replace(dry.config, mode="dry_run")
    held = Scripted(at_1=wanted | {"held": "no figures"})

    for planner in (dry, held):
        stage.run(stage.given(*MANY), on_tick=Planned(planner))
        assert set(stage.twin.fleet.replicas) == {"workers-1"}


def test_workers_that_have_gone_meanwhile_are_left_alone(stage):
    def late(twin, now):
        flips, observed = [RoleFlip("gone", "both", "decode")], observe(twin)
        carry_out(Plan(at=observed.at, replicas={}, flips=flips, release=["gone"]), twin.fleet)

    stage.run(stage.given(*MANY), on_tick=late)


def test_the_real_planner_grows_a_fleet_that_is_too_small(stage):
    config = stage.config(
        pools={"workers": 1}, planner=PlannerConfig(mode="on", replicas_interval_s=5.0)
    )
    planned = Planned(planner_of(config))
    heavy = [(0.1 * number, 1_500, 40) for number in range(250)]

    results = stage.run(stage.given(*heavy), config=config, on_tick=planned)

    assert not results.failures
    assert len(stage.twin.fleet.replicas) > 1
    plans = [json.loads(line) for line in planned.to_json_lines().splitlines()]
    assert plans[-1]["replicas"]["workers"] > 1
