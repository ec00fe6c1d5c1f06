"""The alerts, in one place: `charts/generate.py` writes them for Prometheus and for the chart.

`$own` selects what a fleet's processes tell, `$ray` what Ray tells of its nodes; the other words
with a dollar are values of the chart, under `monitoring.alerts`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import Template

_BY_LE = "sum by (le) (rate(vllm:e2e_request_latency_seconds_bucket{$own}[5m]))"
_WAITING = "sum(vllm:num_requests_waiting{$own}) > 0"
_HIT_RATE = (
    "sum(rate(vllm:prefix_cache_hits_total{$own}[15m]$past))"
    " / sum(rate(vllm:prefix_cache_queries_total{$own}[15m]$past))"
)
# As in Google's SRE workbook, chapter 5: 2 % of a month's budget in an hour, 5 % in six.
_BURNS = (("1h", "5m", 14.4, "critical"), ("6h", "30m", 6.0, "warning"))


@dataclass(frozen=True, slots=True)
class Alert:
    name: str
    expr: str
    lasts: str  # until it fires; empty: at once
    severity: str
    summary: str

    def filled(self, words: Mapping[str, str]) -> "Alert":
        """Return it with values for the words that begin with a dollar."""
        expr, summary = (Template(text).substitute(words) for text in (self.expr, self.summary))
        return Alert(self.name, expr, self.lasts, self.severity, summary)


def alerts() -> Iterator[Alert]:
    yield Alert(
        "StafetteThroughputDrop",
        "sum(rate(vllm:generation_tokens_total{$own}[10m]))"
        " < (1 - $throughputDropPercent / 100)"
        " * sum(rate(vllm:generation_tokens_total{$own}[10m] offset 1h))"
        f" and {_WAITING}",
        "10m",
        "warning",
        "Tokens per second are $throughputDropPercent % below those of an hour ago,"
        " while requests wait",
    )
    yield Alert(
        "StafetteSlowMedian",
        f"histogram_quantile(0.5, {_BY_LE}) > $p50Seconds",
        "10m",
        "warning",
        "Half of all requests take longer than $p50Seconds s",
    )
    yield Alert(
        "StafetteSlowTail",
        f"histogram_quantile(0.95, {_BY_LE}) > $p95Seconds",
        "10m",
        "critical",
        "One request in twenty takes longer than $p95Seconds s",
    )
    yield Alert(
        "StafetteIdleGpus",
        f"avg(ray_node_gpus_utilization{{$ray}}) < $gpuUtilizationPercent and {_WAITING}",
        "15m",
        "warning",
        "GPUs are less than $gpuUtilizationPercent % busy, while requests wait",
    )
    yield from _burning()
    yield from _of_the_cache()
    yield Alert(
        "StafetteSilentProcess",
        'max by (job, instance) (stafette_node_processes{state="silent",$own}) > 0',
        "5m",
        "warning",
        "A process of a node is there, but does not tell what it counts",
    )


def _burning() -> Iterator[Alert]:
    for long, short, factor, severity in _BURNS:
        yield Alert(
            "StafetteErrorBudgetBurn",
            " and ".join(_failing(window, factor) for window in (long, short)),
            "",
            severity,
            f"Failed requests use up their budget {factor:g} times too fast",
        )
        yield Alert(
            "StafetteFirstTokenBudgetBurn",
            " and ".join(_late(window, factor) for window in (long, short)),
            "",
            severity,
            f"Late first tokens use up their budget {factor:g} times too fast",
        )


def _failing(window: str, factor: float) -> str:
    name = "stafette_http_responses_total"
    failed = f'sum(rate({name}{{path=~"/v1/.*",status=~"5..",$own}}[{window}]))'
    every = f'sum(rate({name}{{path=~"/v1/.*",$own}}[{window}]))'
    return f"{failed} / {every} > {factor} * (1 - $availability)"


def _late(window: str, factor: float) -> str:
    name = "vllm:time_to_first_token_seconds"
    in_time = f'sum(rate({name}_bucket{{le="$bound",$own}}[{window}]))'
    every = f"sum(rate({name}_count{{$own}}[{window}]))"
    share = f"scalar(clamp_max(vector({factor} * (1 - $firstTokenShare)), 0.99))"
    return f"1 - {in_time} / {every} > {share}"


def _of_the_cache() -> Iterator[Alert]:
    now = _HIT_RATE.replace("$past", "")
    past = _HIT_RATE.replace("$past", " offset 1h")
    yield Alert(
        "StafetteHitRateCollapse",
        f"{now} < (1 - $hitRateDropPercent / 100) * ({past}) and ({past}) > 0.05",
        "15m",
        "warning",
        "Prefix cache hits are $hitRateDropPercent % below those of an hour ago",
    )
    yield Alert(
        "StafetteLeasesExpire",
        'sum(rate(stafette_leases_ended_total{reason=~"expired|outlived",$own}[10m]))'
        " / sum(rate(stafette_leases_granted_total{$own}[10m]))"
        " > $expiredLeasesPercent / 100",
        "10m",
        "warning",
        "More than $expiredLeasesPercent % of the leases on KV blocks expire:"
        " readers die, or are too slow",
    )
    yield Alert(
        "StafetteEventGaps",
        "sum(increase(stafette_router_event_batches_total"
        '{result=~"gaps|failed_replays",$own}[10m])) > $eventGaps',
        "5m",
        "warning",
        "Routers miss more than $eventGaps batches of KV events in ten minutes:"
        " they know less of the caches",
    )
