"""What settings say of pools, and what they must not say."""

import json

import pytest

from stafette.platform.config import load_mapping
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.planner.beliefs import Beliefs
from stafette.platform.planner.running.specs import pool_specs
from stafette.workers.mocker.speed_profile import Profile

PLANNED = {"mode": "on", "pools": {"decode": {"max_replicas": 4}}}


def config(fleet=None, **planner):
    tree = {"pools": fleet or {"prefill": {}, "decode": {}}, "planner": PLANNED | planner}
    return load_mapping(tree, "test", {}).config


def document(path, model):
    told = {"format": "stafette.profile", "version": 1, "subject": {"model": model}}
    told |= {"limits": {}, "points": [], "model": {"step_ms": 9.0}}
    path.write_text(json.dumps(told))
    return str(path)


def test_a_pool_that_is_not_planned_keeps_its_size():
    found = pool_specs(config({"prefill": {"replicas": 3}, "decode": {"worker_class": "h100"}}))

    limits = found["prefill"].limits
    assert (limits.min_replicas, limits.max_replicas) == (3, 3)
    assert (found["decode"].limits.max_replicas, found["decode"].worker_class) == (4, "h100")
    assert [spec.role for spec in found.values()] == ["prefill", "decode"]


def test_speed_and_room_are_the_profiles_and_the_flags(tmp_path):
    profile = document(tmp_path / "profile.json", "org/SmolLM2.gguf")
    pools = {"prefill": {}, "decode": {"profile": profile, "engine": {"num_kv_blocks": 10}}}

    found = pool_specs(config(pools))["decode"].model

    assert (found.performance.step_ms, found.kv_tokens) == (9.0, 160)


def test_a_plain_profile_tells_no_model(tmp_path):
    path = tmp_path / "plain.json"
    path.write_text(Profile(step_ms=7.0).to_json())

    found = pool_specs(config({"aggregated": {"profile": str(path)}}, pools={"aggregated": {}}))

    assert found["aggregated"].model.performance.step_ms == 7.0


def test_a_profile_of_another_model_is_refused(tmp_path):
    profile = document(tmp_path / "profile.json", "Qwen3-8B")

    with pytest.raises(InvalidSetting, match="is of Qwen3-8B, and the fleet serves smollm2"):
        pool_specs(config({"prefill": {}, "decode": {"profile": profile}}))


@pytest.mark.parametrize(("target", "value"), [("ttft_ms", 20.0), ("itl_ms", 21.0)])
def test_a_promise_that_no_number_of_workers_keeps_is_refused(target, value):
    speed = {"step_ms": 20.0, "prefill_ms_per_token": 1.0, "decode_ms_per_seq": 2.0}
    pool = {"mock": speed, "engine": {"num_kv_blocks": 64, "max_model_len": 512}}

    with pytest.raises(InvalidSetting, match=f"planner.slo.{target} = {value}: cannot be kept"):
        pool_specs(config({"aggregated": pool}, pools={"aggregated": {}}, slo={target: value}))


def test_gpus_are_counted_as_ray_gives_them():
    fleet = {"aggregated": {"num_gpus": 2}}
    limits = {"aggregated": {"min_replicas": 1, "max_replicas": 3}}

    found = pool_specs(config(fleet, pools=limits, max_gpus=4))

    assert found["aggregated"].limits.gpus_per_replica == 2
    with pytest.raises(InvalidSetting, match="max_gpus = 1.5: is less than"):
        pool_specs(config(fleet, pools=limits, max_gpus=1.5))


def test_a_profile_is_for_all_pools_of_its_class(tmp_path):
    profile = document(tmp_path / "profile.json", "smollm2")
    fleet = {
        "decode": {"worker_class": "a", "profile": profile},
        "prefill": {"worker_class": "a"},
        "more": {"worker_class": "b", "role": "both"},
    }

    found = pool_specs(config(fleet))

    steps = {name: spec.model.performance.step_ms for name, spec in found.items()}
    assert steps == {"decode": 9.0, "prefill": 9.0, "more": Profile().step_ms}


def test_the_room_of_a_class_is_that_of_its_pools_that_decode():
    limits = {"max_num_seqs": 8}
    fleet = {"decode": {"worker_class": "a"}, "prefill": {"worker_class": "a", "engine": limits}}
    told = config(fleet)

    beliefs = Beliefs(told.planner, pool_specs(told))
    beliefs.know("prefill", 16, 8)

    assert beliefs.decode.max_num_seqs == 256
    beliefs.know("decode", 4_096, 100)
    assert (beliefs.decode.kv_tokens, beliefs.decode.max_num_seqs) == (4_096, 100)
