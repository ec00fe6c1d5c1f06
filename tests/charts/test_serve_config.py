"""What the chart tells Ray, read by those who will read it: our loader, Serve, the autoscaler."""

import base64
import shlex
import warnings

import pytest
import yaml

from stafette.platform.config import API_KEYS_VARIABLE, TOKEN_VARIABLE, api_keys, load_mapping

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Ray, as it is imported
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _generate_available_node_types_from_ray_cr_spec,
    )
    from ray.serve._private.deploy_utils import get_app_code_version
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    from stafette.platform.app import deployment_name
    from stafette.platform.planner.running.plan_policy import PlanPolicy

TOKEN = "t" * 48


def application(case):
    (found,) = ServeDeploySchema.model_validate(case.serve).applications
    return found


def config(case, **environment):
    environment = {TOKEN_VARIABLE: TOKEN, **environment}
    return load_mapping(case.serve["applications"][0]["args"], "args", environment).config


def node_types(case):
    """Return what Ray's own autoscaler takes a pod of each group for."""
    return _generate_available_node_types_from_ray_cr_spec(case.cluster)


def test_serve_runs_no_proxies_and_builds_ours(case):
    schema = ServeDeploySchema.model_validate(case.serve)

    assert schema.proxy_location == "Disabled"
    assert application(case).import_path == "stafette.platform.app:build"
    assert application(case).route_prefix is None


def test_our_loader_takes_the_arguments_and_the_token_of_the_environment(case):
    loaded = config(case)

    assert loaded.token == TOKEN.encode()
    assert loaded.frontend.host == "0.0.0.0"
    assert loaded.for_frontends().token == TOKEN.encode()
    assert all(loaded.for_workers(pool).token == TOKEN.encode() for pool in loaded.pools)


def test_every_deployment_of_ours_is_given_its_number(case):
    numbers = {each.name: each.num_replicas for each in application(case).deployments}

    assert set(numbers) == {"Frontend", *map(deployment_name, config(case).pools)}


def test_numbers_are_those_of_the_values(rendered):
    numbers = {
        each.name: each.num_replicas for each in application(rendered["fleet64"]).deployments
    }

    assert numbers == {"PrefillWorker": 160, "DecodeWorker": 352, "Frontend": 16}


def test_pools_with_long_names_get_the_names_that_the_application_gives(chart):
    pools = {"decode_h200": {"role": "decode", "replicas": 2, "num_cpus": 1}, "decode": None}
    groups = {"decode": {"workers": {"decode": None, "decode_h200": 2}}}
    resources = {"groups": {"decode": {"resources": {"limits": {"cpu": 2}}}}}

    case = chart.render({"config": {"pools": pools}, "groups": groups}, resources)

    assert "DecodeH200Worker" in {each.name for each in application(case).deployments}
    assert deployment_name("decode_h200") == "DecodeH200Worker"


def test_a_planner_may_change_the_numbers_from_within_its_bounds(chart):
    limits = {"min_replicas": 2, "max_replicas": 2}
    planner = {"mode": "on", "pools": {"decode": limits}}
    values = {"config": {"planner": planner, "pools": {"decode": {"replicas": 2}}}}

    case = chart.render(values | {"groups": {"decode": {"pods": 2}}})

    assert application(case).external_scaler_enabled
    assert config(case).pools["decode"].replicas == 2
    assert not application(chart.render({})).external_scaler_enabled


def test_planned_pools_follow_a_policy_where_that_is_the_scaler(chart):
    limits = {"min_replicas": 1, "max_replicas": 2}
    planner = {"mode": "on", "scaler": "policy", "pools": {"decode": limits}}
    values = {"config": {"planner": planner, "pools": {"decode": {"replicas": 2}}}}

    found = application(chart.render(values | {"groups": {"decode": {"pods": 2}}}))

    sizes = {each.name: each for each in found.deployments}
    decode = sizes["DecodeWorker"]
    assert AutoscalingConfig(**decode.autoscaling_config).initial_replicas == 2
    assert sizes["PrefillWorker"].num_replicas == 1
    assert not found.external_scaler_enabled
    policy, _, name = found.autoscaling_policy["policy_function"].partition(":")
    assert (policy, name) == (PlanPolicy.__module__, PlanPolicy.__name__)


def test_another_number_of_workers_replaces_none(chart):
    more = {
        "config": {"pools": {"decode": {"replicas": 3}}},
        "groups": {"decode": {"pods": 3}},
    }
    longer = {"config": {"engine": {"max_model_len": 2048}}}

    versions = [get_app_code_version(application(chart.render(v))) for v in ({}, more, longer)]

    assert versions[0] == versions[1] != versions[2]


def test_raised_numbers_change_nothing_but_numbers_of_the_cluster(chart):
    """KubeRay makes a new cluster when anything else differs."""
    more = {"config": {"pools": {"decode": {"replicas": 5}}, "frontend": {"replicas": 2}}}

    before, after = chart.render().cluster, chart.render(more).cluster
    for cluster in (before, after):
        for group in cluster["workerGroupSpecs"]:
            for name in ("replicas", "minReplicas", "maxReplicas"):
                del group[name]

    assert before == after


def test_each_worker_finds_its_place_on_its_groups_pods_and_nowhere_else(case):
    """Ray's view of the pods against what Serve will ask of them."""
    loaded = config(case)
    numbers = {each.name: each.num_replicas for each in application(case).deployments}
    asked = {pool: (own, numbers[deployment_name(pool)]) for pool, own in loaded.pools.items()}
    asked["frontend"] = (loaded.frontend, numbers["Frontend"])
    types = node_types(case)

    for pool, (own, number) in asked.items():
        assert own.resources == {f"stafette_{pool}": 1}
        room = sum(
            each["resources"].get(f"stafette_{pool}", 0) * each["max_workers"]
            for each in types.values()
        )
        assert room >= number
    for name, group in case.groups.items():
        has = types[name]["resources"]
        for want, key in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
            taken = sum(
                getattr(own, want) * has.get(f"stafette_{pool}", 0)
                for pool, (own, _) in asked.items()
            )
            assert taken <= has.get(key, 0)
        # The shell of KubeRay's command line sees what the autoscaler does.
        (argument,) = shlex.split(group["rayStartParams"]["resources"])
        assert yaml.safe_load(argument).items() <= has.items()


def test_head_takes_no_worker(case):
    head = node_types(case)["headgroup"]["resources"]

    assert head["CPU"] == 0
    assert not [name for name in head if name.startswith("stafette_")]


def test_two_kinds_share_the_pods_of_one_node(rendered):
    gpus = rendered["node8"].groups["gpus"]
    pod = gpus["template"]["spec"]

    assert (gpus["replicas"], pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) == (
        1,
        8,
    )
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert [each["key"] for each in pod["tolerations"]] == ["nvidia.com/gpu"]


def test_pods_without_gpus_tolerate_no_gpu_node(rendered):
    pod = rendered["node8"].groups["frontend"]["template"]["spec"]

    assert "tolerations" not in pod
    assert "nodeSelector" not in pod


def test_secrets_stand_in_plain_text_only_in_their_secrets(case):
    for each in case.objects:
        if each["kind"] == "Secret":
            continue
        for container in _containers(each):
            for variable in container.get("env", ()):
                if "TOKEN" in variable["name"] or "KEY" in variable["name"]:
                    assert "value" not in variable
    secrets = [value for s in case.of("Secret") for value in s["data"].values()]
    assert len(secrets) == 3
    rest = [str(each) for each in case.objects if each["kind"] != "Secret"]
    assert not [value for value in secrets if any(value in text for text in rest)]


def test_every_pod_has_the_token_and_only_frontends_the_keys(case):
    """Ray may build the application in any of them."""
    cluster = case.one("Secret", "-cluster")["metadata"]["name"]
    keys = case.one("Secret", "-api-keys")["metadata"]["name"]
    for container in case.containers().values():
        env = {each["name"]: each.get("valueFrom", {}) for each in container["env"]}
        reference = {"name": cluster, "key": "token"}
        assert env[TOKEN_VARIABLE] == {"secretKeyRef": reference}
        serves = any(port["name"] == "http" for port in container["ports"])
        assert (API_KEYS_VARIABLE in env) == serves
        if serves:
            assert env[API_KEYS_VARIABLE]["secretKeyRef"]["name"] == keys


def test_generated_secrets_are_ones_that_our_code_and_kuberay_take(chart):
    case = chart.render()
    token, auth = (
        base64.b64decode(case.one("Secret", "-cluster")["data"][name])
        for name in ("token", "auth_token")
    )
    keys = base64.b64decode(case.one("Secret", "-api-keys")["data"]["api-keys"]).decode()

    loaded = config(case, **{TOKEN_VARIABLE: token.decode(), API_KEYS_VARIABLE: keys})
    (key,) = api_keys(loaded.frontend, {API_KEYS_VARIABLE: keys}) or ()

    assert loaded.token == token != auth
    assert (key.name, key.secret[:3]) == ("default", "sk-")
    assert case.cluster["authOptions"] == {"mode": "token", "secretName": "demo-stafette-cluster"}


def test_without_rays_token_every_pod_says_so(chart):
    case = chart.render({"ray": {"auth": False}})

    assert case.cluster["authOptions"] == {"mode": "disabled"}
    for container in case.containers().values():
        assert {"name": "RAY_AUTH_MODE", "value": "disabled"} in container["env"]


def test_ray_is_the_version_that_the_image_installs(chart):
    locked = (chart.path.parents[1] / "constraints.txt").read_text().splitlines()

    assert f"ray=={chart.render().cluster['rayVersion']}" in locked


def test_existing_secrets_are_used_and_none_is_made(chart):
    case = chart.render(
        {"secrets": {"cluster": {"existingSecret": "ours"}, "apiKeys": {"existingSecret": "keys"}}}
    )

    assert case.of("Secret") == []
    assert case.cluster["authOptions"]["secretName"] == "ours"
    names = [
        each["valueFrom"]["secretKeyRef"]["name"]
        for each in case.containers()["frontend"]["env"]
        if "valueFrom" in each
    ]
    assert names == ["ours", "keys"]


def test_etcds_password_comes_over_the_arguments_from_its_secret(rendered):
    case = rendered["fleet64"]
    names = {each["name"] for each in case.containers()["decode"]["env"]}
    user, password = "STAFETTE__DISCOVERY__ETCD__USER", "STAFETTE__DISCOVERY__ETCD__PASSWORD"

    loaded = config(case, **{user: "stafette", password: "secret"})

    assert {user, password} <= names
    assert loaded.discovery.etcd.given["password"] == "secret"


def test_redis_keeps_rays_state_where_it_is_told_to(rendered):
    options = rendered["fleet64"].cluster["gcsFaultToleranceOptions"]

    assert options["redisAddress"] == "redis:6379"
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"] == {
        "name": "redis",
        "key": "password",
    }
    assert "gcsFaultToleranceOptions" not in rendered["node8"].cluster


@pytest.mark.parametrize("number", [402653184, 1_099_511_627_776])
def test_large_numbers_stay_whole(chart, number):
    limits = {"resources": {"limits": {"memory": "3Ti"}}}
    groups = {"prefill": limits, "decode": limits}

    case = chart.render({"config": {"engine": {"kv_cache_memory_bytes": number}}, "groups": groups})

    assert config(case).engine.given["kv_cache_memory_bytes"] == number


def test_benchmark_asks_this_fleet_with_a_key(rendered):
    job = rendered["everything"].one("RayJob")["spec"]
    container = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    env = {each["name"]: each.get("value") for each in container["env"]}

    assert env["STAFETTE_URL"] == "http://demo-stafette.prod.svc:8000"
    assert "STAFETTE_API_KEYS" in env


def _containers(one):
    match one["kind"]:
        case "RayService":
            cluster = one["spec"]["rayClusterConfig"]
            specs = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        case "RayJob":
            specs = [one["spec"]["rayClusterSpec"]["headGroupSpec"]]
        case _:
            specs = []
    return [container for spec in specs for container in spec["template"]["spec"]["containers"]]
