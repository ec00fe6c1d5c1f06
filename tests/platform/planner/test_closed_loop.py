"""The planner and a small fleet, each acting on the other."""

import numpy as np
from tests.platform.planner.moments import MODEL, SLO, planner
from tests.platform.planner.small_fleet import Job, SmallFleet

STARTUP_S = 20.0


def jobs(rates, prompt=2_000, output=60, seed=5):
    """Return requests that come at random: rates as (until, requests a second)."""
    random, at, made = np.random.default_rng(seed), 0.0, []
    for until, rate in rates:
        while (at := at + random.exponential(1 / rate)) < until:
            made.append(Job(at, prompt, output))
        at = until
    return made


def test_step_is_served_as_promised_once_replicas_have_started():
    fleet = SmallFleet(
        MODEL, {"prefill": ("prefill", 1), "decode": ("decode", 1)}, startup_s=STARTUP_S
    )

    fleet.run(jobs([(60, 2.0), (180, 12.0)]), 180, planner(startup_s=STARTUP_S).plan)

    recovered = 60 + STARTUP_S + 30
    assert fleet.attainment(SLO.ttft_ms, SLO.itl_ms, until=55) > 0.95
    assert fleet.attainment(SLO.ttft_ms, SLO.itl_ms, since=62, until=62 + STARTUP_S) < 0.5
    assert fleet.attainment(SLO.ttft_ms, SLO.itl_ms, since=recovered, until=175) > 0.95


def test_nobody_who_is_under_way_is_lost_when_replicas_go():
    fleet = SmallFleet(MODEL, {"prefill": ("prefill", 3), "decode": ("decode", 3)})
    asked = jobs([(100, 3.0)])

    fleet.run(asked, 130, planner(hold_down_s=30.0).plan)

    assert len(fleet.workers) < 6
    assert len(fleet.done) == len(asked)
