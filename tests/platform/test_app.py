"""The Serve application, before Ray runs any of it."""

import warnings

import pytest

from stafette.platform.config import load_mapping
from stafette.platform.frontend.errors import InvalidSetting

with warnings.catch_warnings():  # of what Ray does with pydantic
    warnings.simplefilter("ignore")
    from stafette.platform.app import build
    from stafette.platform.serving.launching import check_room

SECRET = "a secret of this cluster"
FLEET = """\
model: smollm2
pools:
  prefill: {num_cpus: 2}
  decode: {replicas: 2, num_gpus: 1, resources: {h100: 1}}
frontend: {replicas: 2}
"""


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    monkeypatch.setenv("STAFETTE_TOKEN", SECRET)
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    return path


def deployments(args):
    """Return the deployments that Serve is given, by their names."""
    frontend = build(args)._bound_deployment
    workers = [each._bound_deployment for each in frontend.init_args[1:]]
    return {each.name: each for each in (frontend, *workers)}


def test_a_file_and_what_is_set_over_it_give_the_deployments(fleet):
    found = deployments({"config": str(fleet), "pools.decode.replicas": "3"})

    assert {name: each.num_replicas for name, each in found.items()} == {
        "Frontend": 2,
        "PrefillWorker": 1,
        "DecodeWorker": 3,
    }
    options = found["DecodeWorker"].ray_actor_options
    assert (options["num_gpus"], options["resources"]) == (1, {"h100": 1})


def test_a_worker_of_several_nodes_has_a_bundle_on_each(fleet):
    spread = "{num_cpus: 4, num_gpus: 8, nodes: 2, resources: {h100: 8}, "
    spread += "engine: {tensor_parallel_size: 8}}"

    (worker,) = (
        each
        for name, each in deployments(
            {"config": str(fleet), "pools": f"{{aggregated: {spread}}}"}
        ).items()
        if name == "Worker"
    )

    config = worker._replica_config
    bundle = {"CPU": 2, "GPU": 4, "h100": 4}
    assert config.placement_group_bundles == [bundle, bundle]
    assert config.placement_group_strategy == "STRICT_SPREAD"
    options = worker.ray_actor_options
    assert (options["num_cpus"], options["num_gpus"]) == (2, 4)


def test_one_machine_has_no_room_for_a_worker_of_two_nodes():
    spread = {"num_cpus": 0.1, "nodes": 2, "engine": {"tensor_parallel_size": 2}}
    config = load_mapping({"pools": {"aggregated": spread}}, "args").config

    with pytest.raises(InvalidSetting, match=r"aggregated.nodes = 2: is more than this machine"):
        check_room(config)


def test_the_tree_itself_can_be_the_arguments_of_a_serve_config(monkeypatch):
    monkeypatch.setenv("STAFETTE_TOKEN", SECRET)

    found = deployments({"model": "smollm2", "pools": {"aggregated": {"replicas": 4}}})

    assert found["Worker"].num_replicas == 4


def test_only_what_is_told_something_new_gets_a_new_version(fleet):
    def versions(**args):
        found = deployments({"config": str(fleet), **args})
        return {name: each._version for name, each in found.items()}

    before = versions()
    assert versions(**{"pools.decode.replicas": "9"}) == before
    changed = versions(**{"pools.decode.engine.max_num_seqs": "9"})
    assert {name for name in before if before[name] != changed[name]} == {"DecodeWorker"}


def test_another_secret_is_news_for_everybody(fleet, monkeypatch):
    before = {name: each._version for name, each in deployments({"config": str(fleet)}).items()}
    monkeypatch.setenv("STAFETTE_TOKEN", SECRET[::-1])

    after = {name: each._version for name, each in deployments({"config": str(fleet)}).items()}

    assert not set(before.values()) & set(after.values())


def test_the_planner_is_a_deployment_only_where_it_is_wanted(fleet):
    planned = {"planner.pools": "{decode: {max_replicas: 4}}"}

    off = build({"config": str(fleet), **planned})._bound_deployment
    dry = build({"config": str(fleet), **planned, "planner.mode": "dry_run"})._bound_deployment

    assert off.init_kwargs == {}
    planner = dry.init_kwargs["planner"]._bound_deployment
    assert (planner.name, planner.num_replicas) == ("Planner", 1)
    told, specs, names, frontend = planner.init_args
    assert (told.planner.mode, specs["decode"].limits.max_replicas) == ("dry_run", 4)
    assert (names["decode"], frontend) == ("DecodeWorker", off.name)


@pytest.mark.parametrize("begun", [0, 3])
def test_planned_pools_follow_a_policy_where_that_is_the_scaler(fleet, begun):
    planned = {"planner.pools": "{decode: {min_replicas: 0, max_replicas: 4}}"}
    policy = {"planner.mode": "on", "planner.scaler": "policy", "pools.decode.replicas": str(begun)}

    found = deployments({"config": str(fleet), **planned, **policy})

    assert found["PrefillWorker"].num_replicas == 1
    decode = found["DecodeWorker"]._deployment_config.autoscaling_config
    assert (decode.min_replicas, decode.initial_replicas) == (0, begun)
    assert (decode.upscale_delay_s, decode.downscale_delay_s) == (0, 0)
    assert decode.policy.policy_function.endswith(".PlanPolicy")
