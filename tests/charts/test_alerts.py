"""The chart's alerts, monitors and dashboards; what they ask for is tested beside its source."""

import json
import re

import promql_parser
import pytest

from stafette.platform.frontend.metrics.book import Metrics


@pytest.fixture(scope="module")
def rules(rendered):
    (group,) = rendered["everything"].one("PrometheusRule")["spec"]["groups"]
    return group["rules"]


def test_prometheus_reads_every_query(rules):
    assert len(rules) == 12
    for rule in rules:
        assert promql_parser.parse(rule["expr"])


def test_every_query_asks_for_this_release_alone(rules, rendered):
    monitors = {
        f"prod/{each['metadata']['name']}" for each in rendered["everything"].of("PodMonitor")
    }

    for rule in rules:
        for labels in re.findall(r"[a-z_]\{(.*?)\}", rule["expr"]):
            assert 'namespace="prod"' in labels
            assert re.search(r'job="(.*?)"', labels)[1] in monitors


@pytest.mark.parametrize(("seconds", "bound"), [(1, "1.0"), (0.25, "0.25"), (10, "10.0")])
def test_bound_of_the_first_token_is_written_as_the_metrics_write_it(chart, seconds, bound):
    values = {
        "monitoring": {"enabled": True, "rules": True, "alerts": {"firstTokenSeconds": seconds}}
    }
    text = chart.render(values).text

    assert f'le="{bound}"' in text
    assert seconds in Metrics().time_to_first_token.bounds


def test_alerts_say_the_thresholds_of_the_values(chart):
    alerts = {"throughputDropPercent": 20, "p50Seconds": 2.5, "p95Seconds": 9}
    case = chart.render({"monitoring": {"enabled": True, "rules": True, "alerts": alerts}})
    expressions = {
        rule["alert"]: rule["expr"]
        for rule in case.one("PrometheusRule")["spec"]["groups"][0]["rules"]
    }

    assert "(1 - 20 / 100) * sum" in expressions["StafetteThroughputDrop"]
    assert expressions["StafetteSlowMedian"].endswith("> 2.5")
    assert expressions["StafetteSlowTail"].endswith("> 9")


def test_monitors_name_ports_that_the_pods_have(rendered):
    case = rendered["everything"]
    containers = case.containers()
    ports = {
        name: {port["name"]: port["containerPort"] for port in c["ports"]}
        for name, c in containers.items()
    }

    of_ray, own = case.one("PodMonitor", "-ray"), case.one("PodMonitor", "stafette")

    assert [each["port"] for each in own["spec"]["podMetricsEndpoints"]] == ["stafette"]
    assert {name for name, have in ports.items() if "stafette" in have} == set(ports) - {"head"}
    served = case.serve["applications"][0]["args"]["metrics"]
    assert ports["decode"]["stafette"] == served["port"]
    assert served["host"] == "0.0.0.0"
    assert [each["port"] for each in of_ray["spec"]["podMetricsEndpoints"]] == ["metrics"]
    assert all("metrics" in have for have in ports.values())


def test_monitoring_needs_a_port(chart):
    values = {"monitoring": {"enabled": True}, "config": {"metrics": {"port": None}}}

    assert "config.metrics.port" in chart.refusal(values)


def test_dashboards_are_a_configmap_that_grafanas_sidecar_finds(rendered, chart):
    case = rendered["everything"].one("ConfigMap", "-dashboards")
    files = {path.name: path for path in (chart.path / "dashboards").iterdir()}

    assert case["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert set(case["data"]) == set(files)
    for name, text in case["data"].items():
        assert json.loads(text) == json.loads(files[name].read_text())
