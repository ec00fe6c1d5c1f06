"""Alerts ask for metrics that exist, in queries that Prometheus can read."""

import re
from importlib.util import find_spec
from pathlib import Path

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from stafette.platform.frontend.generator import Status
from stafette.platform.frontend.metrics.book import Metrics
from stafette.platform.frontend.metrics.exposition import Exposition


@pytest.fixture(scope="module")
def rules(rendered):
    (group,) = rendered["everything"].one("PrometheusRule")["spec"]["groups"]
    return group["rules"]


@pytest.fixture(scope="module")
def exposed():
    """The samples of a frontend that has served something."""
    metrics = Metrics()
    metrics.responses["/v1/chat/completions", 200] += 1
    metrics.time_to_first_token.observe(0.1)
    text, _ = Exposition("m", metrics, Status, lambda: 0).render("")
    families = text_string_to_metric_families(text.decode())
    return [(s.name, s.labels) for family in families for s in family.samples]


def selectors(rules):
    """Return the metrics asked for: name, and the labels with their operators."""
    for rule in rules:
        for name, labels in re.findall(r"([a-z0-9_:]+)\{(.*?)\}", rule["expr"]):
            yield name, re.findall(r'(\w+)(=~?)"((?:[^"\\]|\\.)*)"', labels)


def test_prometheus_reads_every_query(rules):
    assert len(rules) == 8
    for rule in rules:
        assert promql_parser.parse(rule["expr"])


def test_every_metric_of_an_alert_exists(rules, exposed):
    reporter = Path(find_spec("ray").origin).parent / "dashboard/modules/reporter/reporter_agent.py"
    of_ray = set(re.findall(r'"(node_\w+)": Gauge\(', reporter.read_text()))
    names = {name for name, _ in exposed} | {f"ray_{name}" for name in of_ray}

    assert {name for name, _ in selectors(rules)} <= names


def test_every_label_that_an_alert_asks_for_is_there(rules, exposed):
    for name, labels in selectors(rules):
        own = [have for known, have in exposed if known == name]
        for label, operator, value in labels:
            if label in ("namespace", "job") or name.startswith("ray_"):
                continue  # Prometheus' own
            assert any(label in have for have in own)
            if operator == "=":
                assert any(have[label] == value for have in own)


@pytest.mark.parametrize(("seconds", "bound"), [(1, "1.0"), (0.25, "0.25"), (10, "10.0")])
def test_bound_of_the_first_token_is_written_as_the_metrics_write_it(
    chart, exposed, seconds, bound
):
    values = {"monitoring": {"rules": True, "alerts": {"firstTokenSeconds": seconds}}}
    text = chart.render(values).text

    assert f'le="{bound}"' in text
    assert bound in {labels.get("le") for _, labels in exposed}


def test_alerts_say_the_thresholds_of_the_values(chart):
    alerts = {"throughputDropPercent": 20, "p50Seconds": 2.5, "p95Seconds": 9}
    case = chart.render({"monitoring": {"rules": True, "alerts": alerts}})
    expressions = {
        rule["alert"]: rule["expr"]
        for rule in case.one("PrometheusRule")["spec"]["groups"][0]["rules"]
    }

    assert "< 0.8 * sum" in expressions["StafetteThroughputDrop"]
    assert expressions["StafetteSlowMedian"].endswith("> 2.5")
    assert expressions["StafetteSlowTail"].endswith("> 9")


def test_monitors_name_ports_that_the_pods_have(rendered):
    case = rendered["everything"]
    ports = {port["name"] for c in case.containers().values() for port in c["ports"]}

    service = case.one("ServiceMonitor")["spec"]
    pods = case.one("PodMonitor")["spec"]

    assert {each["port"] for each in service["endpoints"]} <= ports
    assert {each["port"] for each in pods["podMetricsEndpoints"]} <= ports
    labels = case.one("Service")["metadata"]["labels"]
    assert service["selector"]["matchLabels"].items() <= labels.items()
