"""Wrong values stop at `helm install`, with the value's name and what to do."""

import math
from unicodedata import category

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GPUS = {"config": {"pools": {"decode": {"num_gpus": 1}}}}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"imag": {}}, "'imag' not allowed"),
        ({"image": {"tags": "1"}}, "at '/image': additional properties 'tags' not allowed"),
        ({"config": {"modle": "x"}}, "at '/config': additional properties 'modle' not allowed"),
        (
            {"config": {"engine": {"max_model_length": 1}}},
            "at '/config/engine': additional properties 'max_model_length' not allowed",
        ),
        (
            {"config": {"pools": {"decode": {"replica": 2}}}},
            "at '/config/pools/decode': additional properties 'replica' not allowed",
        ),
        ({"groups": {"decode": {"toleration": []}}}, "'toleration' not allowed"),
        ({"groups": {"decode": {"tolerations": [{"keys": "a"}]}}}, "'keys' not allowed"),
        ({"groups": {"decode": {"resources": {"limit": {}}}}}, "'limit' not allowed"),
        ({"config": {"pools": {"decode": {"replicas": "2"}}}}, "got string, want integer"),
        ({"image": {"tag": "a b"}}, "at '/image/tag'"),
        ({"upgrade": {"strategy": "NewClusterWithIncrementalUpgrade"}}, "at '/upgrade/strategy'"),
        ({"config": {"frontend": {"ingress": "serve"}}}, "value must be 'own'"),
        ({"config": {"frontend": {"port": 80}}}, "at '/config/frontend/port'"),
        ({"config": {"cluster": {"token": "x" * 40}}}, "'token' not allowed"),
        ({"config": {"discovery": {"etcd": {"password": "x"}}}}, "'password' not allowed"),
        ({"monitoring": {"alerts": {"firstTokenSeconds": 3}}}, "'/monitoring/alerts/firstTok"),
    ],
)
def test_schema_refuses(chart, values, says):
    assert says in chart.refusal(values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"groups": {"decode": {"minPods": 3, "maxPods": 2}}},
            "groups.decode.minPods: 3 is above maxPods, 2",
        ),
        (
            {"groups": {"decode": {"pods": 5, "maxPods": 4}}},
            "groups.decode.pods: 5 must be between minPods and maxPods, 4 and 4",
        ),
        (
            {"config": {"pools": {"decode": None}}, "groups": {"decode": None}},
            "config.pools: of prefill none decodes: add one named decode, or aggregated",
        ),
        (
            {"config": {"pools": {"fast": {"replicas": 1}}}},
            "config.pools.fast.role: must be given: prefill, decode or both",
        ),
        ({"groups": {"decode": None}}, "groups: none takes decode: give one of them workers"),
        (
            {"groups": {"decode": {"workers": {"decoder": 1}}}},
            "groups.decode.workers.decoder: is no pool of config.pools: there are decode, frontend",
        ),
        (
            {"config": {"pools": {"decode": {"replicas": 4}}}, "groups": {"decode": {"pods": 2}}},
            "config.pools.decode.replicas: 4 do not fit on the pods of decode, which take 2",
        ),
        (GPUS, "groups.decode.gpu.type: must be given, since its workers take GPUs (num_gpus)"),
        (
            {
                "config": {"pools": {"decode": {"num_gpus": 2}}},
                "groups": {"decode": {"gpu": {"type": "any", "count": 1}}},
            },
            "groups.decode.gpu.count: 1 is less than the 2 that its workers take (num_gpus)",
        ),
        (
            {"config": {"pools": {"decode": {"num_cpus": 4}}}},
            "groups.decode.resources.limits.cpu: 1 is less than the 4 that its workers take",
        ),
        (
            {"gcsFaultTolerance": {"enabled": True}},
            "gcsFaultTolerance.redisAddress: must be given",
        ),
        (
            {"modelVolume": {"claimName": "a", "hostPath": "/b"}},
            "modelVolume: claimName, hostPath and image exclude each other",
        ),
        (
            {"config": {"discovery": {"backend": "etcd"}}},
            "config.discovery.etcd.endpoints: must be given where backend is etcd",
        ),
        ({"fullnameOverride": "1st"}, "must begin with a letter"),
    ],
)
def test_chart_refuses_what_no_schema_can_say(chart, values, says):
    assert says in chart.refusal(values)


def planner(mode: str, most: int) -> dict:
    return {"config": {"planner": {"mode": mode, "pools": {"decode": {"max_replicas": most}}}}}


def sizes_of(**decode) -> dict:
    return {"groups": {"decode": {"resources": decode}}}


def kv(num_bytes: int, tier_bytes: int = 0, gpus: int = 0) -> dict:
    """Two workers of decode in one pod of 3 GiB."""
    engine = {"kv_cache_memory_bytes": num_bytes}
    config = {"pools": {"decode": {"replicas": 2, "num_gpus": gpus, "engine": engine}}}
    if tier_bytes:
        config["tiers"] = {"host": {"capacity_bytes": tier_bytes}}
    limits = {"cpu": 2, "memory": "3Gi"}
    group = {"workers": {"decode": 2}, "resources": {"limits": limits}}
    if gpus:
        group["gpu"] = {"type": "any", "count": 2 * gpus}
    return {"config": config, "groups": {"decode": group}}


def ranks(count: int, gpus: int, own: int | None = None) -> dict:
    """All engines have so many ranks, but decode's where it has its own number."""
    pool = {"num_gpus": gpus} | ({"engine": {"tensor_parallel_size": own}} if own else {})
    config = {"engine": {"tensor_parallel_size": count}, "pools": {"decode": pool}}
    return {"config": config, "groups": {"decode": {"gpu": {"type": "any", "count": gpus}}}}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"config": {"planner": {"pools": {"decoder": {}}}}},
            "config.planner.pools.decoder: is no pool of config.pools: there are decode, prefill",
        ),
        (planner("on", 2), "max_replicas: 2 do not fit on the pods that take decode, which"),
        (
            {"config": {"planner": {"mode": "on", "pools": {"decode": {}}}}},
            "max_replicas: 8 do not fit on the pods that take decode, which have room for 1",
        ),
        (
            {
                **planner("on", 3),
                "autoscaler": {"enabled": True},
                "groups": {"decode": {"maxPods": 2}},
            },
            "room for 2: lower it, or raise their group's maxPods",
        ),
        ({"config": {"frontend": {"host": "127.0.0.1"}}}, "config.frontend.host: 127.0.0.1 is not"),
        ({"config": {"metrics": {"host": "localhost"}}}, "config.metrics.host: localhost is not"),
        ({"config": {"frontend": {"port": 8080}}}, "config.frontend.port: 8080 is taken by Ray"),
        ({"config": {"metrics": {"port": 8000}}}, "config.metrics.port: 8000 is config.frontend"),
        ({"monitoring": {"rules": True}}, "monitoring.rules: needs monitoring.enabled"),
        (
            {"config": {"model": "/data/llama"}, "modelVolume": {"claimName": "models"}},
            "modelVolume: nothing in config is below its mountPath, /models, and config.model is",
        ),
        (
            sizes_of(requests={"cpu": "1500m"}, limits={"cpu": 1}),
            "groups.decode.resources.requests.cpu: 1500m is above limits.cpu, 1",
        ),
        (
            sizes_of(requests={"memory": "4Gi"}, limits={"memory": "4000M"}),
            "groups.decode.resources.requests.memory: 4Gi is above limits.memory, 4000M",
        ),
        ({"head": {"resources": {"requests": {"cpu": 3}}}}, "head.resources.requests.cpu: 3 is"),
        (kv(1610612736), "groups.decode.resources.limits.memory: 3Gi does not hold the 3.0 GiB"),
        (kv(1 << 30, 1 << 30), "3Gi does not hold the 4.0 GiB that its workers keep for KV"),
        (ranks(4, 1), "config.pools.decode.num_gpus: 1 must be 4: each rank"),
        (ranks(1, 1, own=2), "config.pools.decode.num_gpus: 1 must be 2: each rank"),
    ],
)
def test_chart_refuses_values_that_contradict_each_other(chart, values, says):
    assert says in chart.refusal(values)


@pytest.mark.parametrize(
    "values",
    [
        planner("dry_run", 8),
        planner("off", 8),
        planner("on", 1),
        {**planner("on", 3), "autoscaler": {"enabled": True}, "groups": {"decode": {"maxPods": 3}}},
        {"config": {"model": "/models/llama"}, "modelVolume": {"claimName": "models"}},
        {"config": {"lora_modules": {"a": "/models/a"}}, "modelVolume": {"claimName": "models"}},
        sizes_of(requests={"cpu": "1000m", "memory": "2Gi"}, limits={"cpu": 1, "memory": "2048Mi"}),
        kv(1 << 30),
        kv(64 << 30, gpus=1),
        ranks(4, 1, own=1),
        ranks(2, 2),
    ],
)
def test_what_agrees_is_rendered(chart, values):
    assert chart.render(values).groups["decode"]


@pytest.mark.parametrize(("per_pod", "pods"), [(1, 4), (2, 2), (4, 2)])
def test_a_worker_of_two_nodes_has_a_share_of_itself_on_two_pods(chart, per_pod, pods):
    engine = {"tensor_parallel_size": 8}
    pool = {"replicas": 2, "nodes": 2, "num_cpus": 4, "num_gpus": 8, "engine": engine}
    group = {"workers": {"decode": per_pod}, "gpu": {"type": "any", "count": 4 * per_pod}}
    group["resources"] = {"limits": {"cpu": 2 * per_pod}}
    values = {"config": {"pools": {"decode": pool}}, "groups": {"decode": group}}

    assert chart.render(values).groups["decode"]["replicas"] == pods

    group["gpu"]["count"] -= 1
    assert "is less than the" in chart.refusal(values)


sizes = st.integers(1, 6)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(replicas=sizes, per_pod=sizes, pods=st.none() | sizes, low=st.none() | sizes)
def test_what_is_accepted_has_room_for_every_worker(chart, replicas, per_pod, pods, low):
    group = {"workers": {"decode": per_pod}, "resources": {"limits": {"cpu": per_pod}}}
    given_sizes = {"pods": pods, "minPods": low}
    group |= {name: value for name, value in given_sizes.items() if value is not None}
    values = {
        "config": {"pools": {"decode": {"replicas": replicas}}},
        "groups": {"decode": group},
    }
    needed = math.ceil(replicas / per_pod)
    there = needed if pods is None else pods
    least = there if low is None else low

    if there * per_pod < replicas or least > there:
        assert chart.refusal(values)
        return

    made = chart.render(values).groups["decode"]
    assert (made["replicas"], made["minReplicas"], made["maxReplicas"]) == (there, least, there)


# Unassigned characters (Cn) are others in each version of Unicode; these will never be assigned.
never = st.sampled_from("\ufdd0\ufffe\uffff\U0010ffff")
characters = st.characters(exclude_categories=["Cs", "Cn"]) | never
texts = st.text(characters, min_size=1, max_size=12)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=texts)
def test_any_text_arrives_as_it_is_or_is_refused(chart, text):
    held = not any(category(each)[0] == "C" or each in "\u2028\u2029" for each in text)
    values = {
        "config": {"model": text},
        "service": {"annotations": {"note": text}},
        "groups": {"decode": {"env": [{"name": "NOTE", "value": text}]}},
        "gcsFaultTolerance": {"enabled": True, "redisAddress": text},
    }
    if not held:
        assert chart.refusal({"config": values["config"]})
        assert chart.refusal({"service": values["service"]})
        return

    case = chart.render(values)

    assert case.serve["applications"][0]["args"]["model"] == text
    assert case.one("Service")["metadata"]["annotations"]["note"] == text
    assert {"name": "NOTE", "value": text} in case.containers()["decode"]["env"]
    assert case.cluster["gcsFaultToleranceOptions"]["redisAddress"] == text
