"""Dashboards and alerts ask for metrics, and for labels of them, that a running stack tells."""

import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.platform.planner.moments import Moments, planner

from stafette.kvtransfer.tiers.stats import Calls, Counters, StoreStats, TierStats, Waiting
from stafette.platform.observability.dashboards import dashboards
from stafette.platform.observability.merging import merged
from stafette.platform.observability.planning import PlannerMetrics
from stafette.platform.observability.process import ProcessMetrics, text_of
from stafette.platform.observability.workers import tier_metrics, time_metrics
from stafette.platform.planner.running.service import PlannerService
from stafette.platform.planner.scaler import DryRun
from stafette.workers.request_times import RequestTimes

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "stafette"
TOLD = {}
# What vLLM's examples/observability/prometheus_grafana/grafana.json asks for, as of 2026, but for
# request_max_num_generation_tokens_sum: the longest answer of one request's.
VLLM_DASHBOARD = (
    *("e2e_request_latency_seconds_bucket", "e2e_request_latency_seconds_sum"),
    *("inter_token_latency_seconds_bucket", "inter_token_latency_seconds_sum"),
    *("time_to_first_token_seconds_bucket", "time_to_first_token_seconds_sum"),
    *("request_prompt_tokens_bucket", "request_generation_tokens_bucket"),
    *("prompt_tokens_total", "generation_tokens_total", "request_success_total"),
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
    *("request_queue_time_seconds_sum", "request_prefill_time_seconds_sum"),
    "request_decode_time_seconds_sum",
)
GRAFANA = {"$__rate_interval": "5m", "$job": ".*"}


def alert_queries():
    (group,) = yaml.safe_load((CHART / "rules" / "stafette.yaml").read_text())["groups"]
    return [rule["expr"] for rule in group["rules"]]


def dashboard_queries():
    found = []
    for path in sorted((CHART / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            found += [target["expr"] for target in panel.get("targets", ())]
    return found


def plain(query: str) -> str:
    for variable, value in GRAFANA.items():
        query = query.replace(variable, value)
    return query


def selectors(query: str):
    """Return the metrics asked for: name, and the labels with their operators."""
    for name, labels in re.findall(r"([a-z0-9_:]+)\{(.*?)\}", query):
        yield name, re.findall(r'(\w+)(=~?)"((?:[^"\\]|\\.)*)"', labels)


def grouped(query: str) -> set[str]:
    return {label.strip() for by in re.findall(r"by \((.*?)\)", query) for label in by.split(",")}


def tiers() -> bytes:
    tier = TierStats(8, 4, 0, 0.0, Counters())
    return text_of(tier_metrics(StoreStats(tier, tier, Counters(), Calls(), Waiting(0, 0, 0, 0))))


def times() -> bytes:
    return text_of(time_metrics("smollm2", RequestTimes()))


def planned() -> bytes:
    """What a planner tells that cannot keep its promises."""
    decider = planner(most=2)
    service = PlannerService(decider, None, DryRun(), None, lambda: 0.0)
    Moments(decider).go_on(60, rate=40.0)
    process = ProcessMetrics("planner", "planner")
    process.add(PlannerMetrics(service).collect)
    return process.render()


@pytest.fixture
async def told(make_stack):
    """The families of a stack that has served something, by name; asked for once."""
    if TOLD:
        return TOLD
    stack = await make_stack()
    stack.keep_apart("p0", "d0")
    await stack.complete()
    text = merged([await stack.page.text(), tiers(), times(), planned()]).decode()
    reporter = Path(find_spec("ray").origin).parent / "dashboard/modules/reporter/reporter_agent.py"
    of_ray = re.findall(r'"(node_\w+)": Gauge\(', reporter.read_text())
    TOLD.update({f"ray_{name}": [] for name in of_ray} | _by_name(text))
    return TOLD


def _by_name(text: str):
    found = {}
    for family in text_string_to_metric_families(text):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
        for suffix in suffixes.get(family.type, [""]):
            name = family.name + suffix
            found[name] = [s.labels for s in family.samples if s.name == name]
    return found


@pytest.mark.parametrize("queries", [alert_queries, dashboard_queries])
def test_prometheus_reads_every_query(queries):
    assert len(queries()) >= 12
    for query in queries():
        assert promql_parser.parse(plain(query))


async def test_everything_that_is_asked_for_is_told(told):
    there = {label for each in told.values() for labels in each for label in labels}
    of_failures = {"reason"}  # which a stack without any does not tell

    for query in [*alert_queries(), *dashboard_queries()]:
        assert grouped(query) <= there | of_failures | {"job", "instance"}, query
        for name, labels in selectors(plain(query)):
            assert name in told, query
            for label, operator, value in labels:
                if label == "job" or name.startswith("ray_"):
                    continue  # Prometheus' own
                assert any(label in have for have in told[name]), query
                if operator == "=":
                    assert any(have[label] == value for have in told[name]), query


def test_every_dashboard_has_a_file_and_every_panel_its_own_place():
    files = {path.stem for path in (CHART / "dashboards").glob("*.json")}
    assert files == {each.uid for each in dashboards()}

    for name in files:
        panels = json.loads((CHART / "dashboards" / f"{name}.json").read_text())["panels"]
        places = [tuple(panel["gridPos"].values()) for panel in panels]
        assert len(set(places)) == len(places)
        assert all(place["x"] + place["w"] <= 24 for place in (p["gridPos"] for p in panels))


async def test_vllms_own_dashboard_finds_its_metrics(told):
    assert {f"vllm:{name}" for name in VLLM_DASHBOARD} - told.keys() == set()


async def test_the_page_lists_every_metric_and_no_other(told):
    page = (ROOT / "docs" / "observability.md").read_text()
    listed = set(re.findall(r"`((?:vllm:|stafette_)\w+)", page))
    endings = ("_bucket", "_count", "_sum")
    there = {name for name in told if name.startswith(("vllm:", "stafette_"))}
    histograms = {name.removesuffix("_bucket") for name in there if name.endswith("_bucket")}
    plain_ones = {
        name for name in there if not any(name == h + end for h in histograms for end in endings)
    }

    assert listed == plain_ones | histograms


@pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus")
def test_prometheus_takes_the_example():
    example = ROOT / "examples" / "observability" / "prometheus.yml"

    checked = subprocess.run(
        ["promtool", "check", "config", example], capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr
