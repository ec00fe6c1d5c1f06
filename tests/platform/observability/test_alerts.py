"""Each alert fires when it should, and stays silent when it should: promtool plays the series."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

RULES = Path(__file__).parents[3] / "charts" / "stafette" / "rules" / "stafette.yaml"
HOUR = 60  # minutes, of a sample each

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: apt-get install prometheus"
)


def grows(*parts: tuple[int, int]) -> str:
    """Return the values of a counter that grows by so much a minute, for so many minutes."""
    words, now = [], 0
    for step, minutes in parts:
        words.append(f"{now}+{step}x{minutes - 1}")
        now += step * minutes
    return " ".join(words)


def level(value: float, minutes: int = 3 * HOUR) -> str:
    return f"{value}+0x{minutes}"


def seconds(name: str, step: int, bounds: dict[str, int], minutes: int = 2 * HOUR) -> dict:
    """Return a histogram's series: of `step` values a minute, so many up to each bound."""
    buckets = {f'{name}_bucket{{le="{le}"}}': grows((n, minutes)) for le, n in bounds.items()}
    return buckets | {
        f'{name}_bucket{{le="+Inf"}}': grows((step, minutes)),
        f"{name}_count": grows((step, minutes)),
    }


LATENCY, FIRST = "vllm:e2e_request_latency_seconds", "vllm:time_to_first_token_seconds"
HITS, QUERIES = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
TOKENS, WAITING = "vllm:generation_tokens_total", "vllm:num_requests_waiting"
GPUS, SILENT = "ray_node_gpus_utilization", 'stafette_node_processes{state="silent"}'
RESPONSES = 'stafette_http_responses_total{path="/v1/completions",status="%d"}'
EXPIRED = 'stafette_leases_ended_total{reason="expired"}'
GRANTED = "stafette_leases_granted_total"
GAPS = 'stafette_router_event_batches_total{result="gaps"}'

# alert: series with which it fires, then series with which it does not.
CASES = {
    "StafetteThroughputDrop": (
        {TOKENS: grows((1000, 100), (800, 40)), WAITING: level(3)},
        {TOKENS: grows((1000, 100), (900, 40)), WAITING: level(3)},
        {TOKENS: grows((1000, 100), (100, 40)), WAITING: level(0)},
    ),
    "StafetteSlowMedian": (
        seconds(LATENCY, 100, {"2.5": 10, "5.0": 60}),
        seconds(LATENCY, 100, {"2.5": 60, "5.0": 90}),
    ),
    "StafetteSlowTail": (
        seconds(LATENCY, 100, {"15.0": 90, "20.0": 100}),
        seconds(LATENCY, 100, {"15.0": 99, "20.0": 100}),
    ),
    "StafetteIdleGpus": (
        {GPUS: level(60), WAITING: level(1)},
        {GPUS: level(60), WAITING: level(0)},
        {GPUS: level(90), WAITING: level(1)},
    ),
    "StafetteErrorBudgetBurn": (
        {RESPONSES % 200: grows((970, 120)), RESPONSES % 503: grows((30, 120))},
        {RESPONSES % 200: grows((9995, 120)), RESPONSES % 503: grows((5, 120))},
        {RESPONSES % 200: grows((900, 120)), RESPONSES % 429: grows((100, 120))},
    ),
    "StafetteFirstTokenBudgetBurn": (
        seconds(FIRST, 100, {"2.5": 20}),
        seconds(FIRST, 100, {"2.5": 96}),
    ),
    "StafetteHitRateCollapse": (
        {HITS: grows((60, 90), (10, 40)), QUERIES: grows((100, 130))},
        {HITS: grows((60, 90), (40, 40)), QUERIES: grows((100, 130))},
        {HITS: grows((4, 90), (0, 40)), QUERIES: grows((100, 130))},
    ),
    "StafetteLeasesExpire": (
        {EXPIRED: grows((3, 120)), GRANTED: grows((100, 120))},
        {EXPIRED: grows((0, 120)), GRANTED: grows((100, 120))},
    ),
    "StafetteEventGaps": (
        {GAPS: grows((2, 120))},
        {GAPS: grows((0, 60), (1, 2), (0, 58))},
    ),
    "StafetteSilentProcess": ({SILENT: level(1)}, {SILENT: level(0)}),
}
LAST = {"StafetteThroughputDrop": 135, "StafetteHitRateCollapse": 125}  # minute; else 115


def case(alert: str, series: dict[str, str], fires: bool) -> dict:
    """Return one test of promtool's; which of an alert's rules fire is of no interest."""
    named = [{"series": _with_job(name), "values": values} for name, values in series.items()]
    count = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}} > 0) > bool 0 or vector(0)'
    samples = [{"labels": "{}", "value": int(fires)}]
    at = f"{LAST.get(alert, 115)}m"
    return {
        "name": f"{alert} {'fires' if fires else 'is silent'}",
        "interval": "1m",
        "input_series": named,
        "promql_expr_test": [{"expr": count, "eval_time": at, "exp_samples": samples}],
    }


def _with_job(series: str) -> str:
    name, _, labels = series.rstrip("}").partition("{")
    return f'{name}{{{labels}{"," if labels else ""}job="stafette"}}'


def test_prometheus_takes_the_rules():
    checked = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_fires_and_is_silent(tmp_path):
    tests = [
        case(alert, series, fires=place == 0)
        for alert, found in CASES.items()
        for place, series in enumerate(found)
    ]
    told = {"rule_files": [str(RULES)], "evaluation_interval": "5m", "tests": tests}
    path = tmp_path / "alerts.yaml"
    path.write_text(yaml.safe_dump(told))

    played = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True)

    assert played.returncode == 0, played.stdout + played.stderr


def test_every_alert_is_played():
    (group,) = yaml.safe_load(RULES.read_text())["groups"]

    assert {rule["alert"] for rule in group["rules"]} == set(CASES)
