"""The policies that ours is compared with decide as they are described."""

import pytest

from benchmarks.planner.measuring import (
    DYNAMO,
    FRONTIER,
    PEAK,
    RAY,
    _first_replicas,
    _make,
    shape_of,
)
from benchmarks.planner.policies.dynamo import Dynamo, Knobs
from benchmarks.planner.scenarios import scenarios
from stafette.platform.planner.config import SloConfig
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.twin.workloads.config import LengthsConfig
from stafette.router.performance import Performance

MODEL = EngineModel(
    performance=Performance(
        step_ms=10,
        prefill_ms_per_token=0.1,
        prefill_ms_per_pair=0,
        decode_ms_per_seq=1,
        decode_ms_per_kv_token=0,
        max_num_batched_tokens=8_000,
    ),
    kv_tokens=100_000,
)


def dynamo(knobs=None):
    policy = Dynamo(MODEL, SloConfig(ttft_ms=500, itl_ms=40), 16, knobs)
    policy._isl, policy._osl = 2_000.0, 100.0
    return policy


def test_dynamo_s_prefill_engine_does_the_largest_batch_within_the_limit():
    # Two prompts take 410 ms, three 610: 2 / 0.41 s.
    assert dynamo()._prefill_rps() == pytest.approx(2 / 0.41)


def test_dynamo_s_decode_engine_is_filled_to_the_limit():
    # Thirty sequences make a step of 40 ms: 30 / (100 x 0.04 s).
    assert dynamo()._decode_rps() == pytest.approx(7.5)


def test_dynamo_s_limits_can_be_tightened():
    # Two prompts take 410 ms of 375, one 210; twenty sequences make a step of 30 ms.
    tight = dynamo(Knobs(tightened=0.75))

    assert tight._prefill_rps() == pytest.approx(1 / 0.21)
    assert tight._decode_rps() == pytest.approx(20 / (100 * 0.030))


def test_dynamo_of_least_replicas_begins_with_them():
    scenario = scenarios(None, quick=False)[0]
    peak = _first_replicas(scenario, PEAK)

    for policy, (_, share) in FRONTIER.items():
        first = _first_replicas(scenario, policy)

        assert all(first[pool] >= share * peak[pool] for pool in first)


def test_static_peak_has_room_for_the_busiest_moment_of_every_scenario():
    for scenario in scenarios(None, quick=False):
        first = _first_replicas(scenario, PEAK)

        assert first["prefill"] >= _first_replicas(scenario, DYNAMO)["prefill"]
        assert first["decode"] >= _first_replicas(scenario, DYNAMO)["decode"]


def test_lengths_have_the_mean_that_was_asked_for():
    shape = shape_of(LengthsConfig(prompt_tokens=3_000, output_tokens=100))

    assert shape.mean_prompt == pytest.approx(3_000, rel=0.02)
    assert shape.mean_output == pytest.approx(100, rel=0.02)


def test_ray_s_targets_are_half_of_what_the_promise_leaves_a_worker():
    scenario = scenarios(None, quick=False)[0]
    config = scenario.config(1, {"prefill": 1, "decode": 1}, flips=True)

    policy = _make(scenario, RAY, config)

    assert policy._pools["prefill"].target_ongoing == 2.0
    assert policy._pools["decode"].target_ongoing == pytest.approx(0.5 * 40 / 2.305, rel=1e-3)
