"""The chart as Helm's own code renders it: no cluster, no helm command."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import helm_python as helm
import jsonschema_rs
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "stafette"
KUBERNETES = "1.34"
FOREIGN = ("PodMonitor", "PrometheusRule", "ServiceMonitor")  # the Prometheus Operator's


@dataclass
class Rendered:
    """What a release would be made of."""

    objects: list[dict[str, Any]]
    notes: str
    text: str = field(repr=False)

    def one(self, kind: str, suffix: str = "") -> dict[str, Any]:
        """Return the only object of a kind whose name ends so."""
        (found,) = [o for o in self.of(kind) if o["metadata"]["name"].endswith(suffix)]
        return found

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.objects if each["kind"] == kind]

    @property
    def cluster(self) -> dict[str, Any]:
        return self.one("RayService")["spec"]["rayClusterConfig"]

    @property
    def serve(self) -> dict[str, Any]:
        return yaml.safe_load(self.one("RayService")["spec"]["serveConfigV2"])

    @property
    def groups(self) -> dict[str, Any]:
        return {group["groupName"]: group for group in self.cluster["workerGroupSpecs"]}

    def containers(self) -> dict[str, Any]:
        """Return the container of the head and of each group."""
        specs = {"head": self.cluster["headGroupSpec"], **self.groups}
        return {name: spec["template"]["spec"]["containers"][0] for name, spec in specs.items()}


class Chart:
    """Renders, and validates what comes out."""

    path = CHART

    def __init__(self, chart: helm.Chart) -> None:
        self._chart = chart
        kuberay = json.loads(Path(__file__).with_name("kuberay.json").read_text())
        definitions = kuberay.pop("$defs")
        self.kuberay = {
            kind: jsonschema_rs.Draft202012Validator(schema | {"$defs": definitions})
            for kind, schema in kuberay.items()
        }

    def render(self, *values: dict[str, Any], name: str = "demo") -> Rendered:
        """Render with values over values, as several -f do."""
        merged: dict[str, Any] = {}
        for each in values:
            _merge(merged, each)
        files = self._chart.render(merged, name=name, namespace="prod")
        notes = files.pop("stafette/templates/NOTES.txt")
        text = "\n---\n".join(files.values())
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return Rendered([each for each in yaml.load_all(text, loader) if each], notes, text)

    def refusal(self, *values: dict[str, Any]) -> str:
        """Return what Helm says to values that must not pass."""
        with pytest.raises(helm.HelmError) as refused:
            self.render(*values)
        return str(refused.value)

    def wrong(self, one: dict[str, Any]) -> list[str]:
        """Return what an API server that is asked to be strict would refuse."""
        kind = one["kind"]
        if kind in self.kuberay:
            errors = self.kuberay[kind].iter_errors(one)
            return [f"{error.instance_path}: {error.message[:200]}" for error in errors]
        if kind in FOREIGN:
            return []
        try:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [f"{'.'.join(map(str, error.path))}: {error.message[:200]}"]
        return []


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = json.loads(json.dumps(value))


def values_file(name: str) -> dict[str, Any]:
    return yaml.safe_load((CHART / f"values-{name}.yaml").read_text())


AGGREGATED = {
    "config": {
        "pools": {"prefill": None, "decode": None, "aggregated": {"replicas": 3, "num_cpus": 1}}
    },
    "groups": {
        "prefill": None,
        "decode": None,
        "both": {
            "workers": {"aggregated": 2},
            "resources": {"limits": {"cpu": 2, "memory": "6Gi"}},
        },
    },
}
EVERYTHING = {
    "labels": {"team": "serving"},
    "config": {"model": "/models/qwen3"},
    "image": {
        "repository": "registry.example/llm/stafette",
        "tag": "1.2.3",
        "pullSecrets": ["pull"],
    },
    "groups": {
        "decode": {
            "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
            "annotations": {"note": "on: every # pod"},
            "affinity": {"podAntiAffinity": {}},
            "priorityClassName": "high",
            "volumes": [{"name": "scratch", "emptyDir": {}}],
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        }
    },
    "autoscaler": {"enabled": True},
    "gcsFaultTolerance": {"enabled": True, "redisAddress": "redis:6379", "existingSecret": "redis"},
    "modelVolume": {"image": "registry.example/models/qwen3:8b"},
    "service": {"type": "LoadBalancer", "annotations": {"a/b": "c"}},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "hosts": ["llm.example"],
        "tlsSecret": "tls",
    },
    "networkPolicy": {"clients": [{"namespaceSelector": {"matchLabels": {"name": "apps"}}}]},
    "podDisruptionBudget": {"head": True},
    "monitoring": {
        "enabled": True,
        "rules": True,
        "labels": {"release": "prometheus"},
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "serving"}},
    },
    "benchmark": {"enabled": True},
}
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "laptop": values_file("laptop"),
    "node8": values_file("node8"),
    "fleet64": values_file("fleet64"),
    "aggregated": AGGREGATED,
    "everything": EVERYTHING,
}


@pytest.fixture(scope="session")
def chart():
    with helm.Chart.load(CHART) as loaded:
        yield Chart(loaded)


@pytest.fixture(scope="session")
def cases():
    return CASES


@pytest.fixture(scope="session")
def rendered(chart):
    """Each of the cases, rendered once."""
    return {name: chart.render(values) for name, values in CASES.items()}


@pytest.fixture(params=CASES)
def case(request, rendered):
    return rendered[request.param]
