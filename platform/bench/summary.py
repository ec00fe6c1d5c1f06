"""What the records of one level come to."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from stafette.platform.bench.record import Record
from stafette.platform.bench.slo import Slo

PERCENTILES = (10, 25, 50, 75, 90, 95, 99)
LATENCIES = ("ttft", "tpot", "itl", "e2e")
Spread = Mapping[str, float]  # mean, p10 … p99, least, most; ms

_HOUR_S = 3600.0
_MILLION = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    gpus: int = 1
    dollars_hour: float | None = None  # of one of them; None: not known

    def of_million(self, tokens_s: float) -> float | None:
        if self.dollars_hour is None or not tokens_s:
            return None
        return self.gpus * self.dollars_hour / _HOUR_S / tokens_s * _MILLION


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A latency that no request shows is None: of answers that do not stream, or of none."""

    requests: int  # answered
    errors: Mapping[str, int]  # by kind: none of them is in any mean
    duration_s: float  # from the first request to the last answer
    requests_s: float
    input_tokens_s: float
    output_tokens_s: float
    tokens_s: float
    input_tokens: float  # mean of a request
    output_tokens: float
    user_tokens_s: float | None  # mean over requests of 1 / TPOT
    gpu_tokens_s: float
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    itl_ms: Spread | None
    e2e_ms: Spread | None
    late_ms: Spread | None  # requests that left after they were due: the client had no time
    good_s: float | None = None  # requests a second that keep the SLO; None: there is none
    good_share: float | None = None  # of all, failed ones included
    kv_hit_rate: float | None = None
    dollars_output: float | None = None  # for a million output tokens
    dollars_all: float | None = None  # for a million tokens, prompts included
    server: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarise(
    records: Sequence[Record], slo: Slo | None, cost: Cost, server: Mapping[str, Any]
) -> Summary:
    good = [record for record in records if record.ok]
    duration_s = span_s(good)
    per_s = 1 / duration_s if duration_s else 0.0
    input_s = per_s * sum(record.prompt_tokens for record in good)
    output_s = per_s * sum(record.output_tokens for record in good)
    speeds = [1 / record.tpot_s for record in good if record.tpot_s]
    kept = None if slo is None else sum(slo.kept(record) for record in good)
    return Summary(
        requests=len(good),
        errors=dict(Counter(record.error for record in records if not record.ok).most_common()),
        duration_s=duration_s,
        requests_s=per_s * len(good),
        input_tokens_s=input_s,
        output_tokens_s=output_s,
        tokens_s=input_s + output_s,
        input_tokens=_mean([record.prompt_tokens for record in good]),
        output_tokens=_mean([record.output_tokens for record in good]),
        user_tokens_s=_mean(speeds) if speeds else None,
        gpu_tokens_s=output_s / cost.gpus,
        ttft_ms=spread_ms(record.ttft_s for record in good),
        tpot_ms=spread_ms(record.tpot_s for record in good),
        itl_ms=spread_ms(gap for record in good for gap in record.itl_s),
        e2e_ms=spread_ms(record.e2e_s for record in good),
        late_ms=spread_ms(record.late_s for record in records),
        good_s=None if kept is None else per_s * kept,
        good_share=None if kept is None or not records else kept / len(records),
        kv_hit_rate=_hit_rate(good, server),
        dollars_output=cost.of_million(output_s),
        dollars_all=cost.of_million(input_s + output_s),
        server=dict(server),
    )


def span_s(records: Sequence[Record]) -> float:
    """Return the time from the first request to the end of the last answer."""
    if not records:
        return 0.0
    first = min(record.began_s for record in records)
    return max(record.began_s + record.ended_s for record in records) - first


def spread_ms(seconds: Iterable[float | None]) -> dict[str, float] | None:
    """Return mean and percentiles, between samples by straight lines as numpy and aiperf do."""
    values = np.array([each for each in seconds if each is not None]) * 1e3
    if not len(values):
        return None
    found = {"mean": float(values.mean()), "least": float(values.min())}
    found |= {"most": float(values.max())}
    percents = np.percentile(values, PERCENTILES)
    return found | {f"p{p}": float(v) for p, v in zip(PERCENTILES, percents, strict=True)}


def _hit_rate(records: Sequence[Record], server: Mapping[str, Any]) -> float | None:
    """Return the share of prompts that was cached, as answers tell, or else the metrics."""
    told = [record for record in records if record.cached_tokens is not None]
    prompt = sum(record.prompt_tokens for record in told)
    if prompt:
        return sum(record.cached_tokens or 0 for record in told) / prompt
    return server.get("kv_hit_rate")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
