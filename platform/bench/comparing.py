"""Is B another than A? Ratios with 95 % intervals, by the bootstrap.

Latencies are resampled by requests, whose tokens belong together; throughput by slices of time,
since requests that run at once are not independent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stafette.platform.bench.measured import Measured
from stafette.platform.bench.record import Record
from stafette.platform.bench.summary import span_s
from stafette.platform.frontend.errors import InvalidSetting

_RESAMPLES = 1000
_AT_ONCE = 50
_LEAST = 1e-3
_SLICES = 20
_INTERVAL = (2.5, 97.5)
_SEED = 0

Floats = npt.NDArray[np.float64]
Statistic = Callable[..., Any]  # of an array, or of each row with axis=1


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """B over A; `low` and `high` bound the ratio."""

    level: str
    name: str
    more_is_better: bool
    a: float
    b: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        return self.b / self.a

    @property
    def verdict(self) -> str:
        if self.low <= 1 <= self.high:
            return "no difference seen"
        better = (self.ratio > 1) == self.more_is_better
        return f"B is {'better' if better else 'worse'} by {abs(self.ratio - 1):.1%}"


def compare(a: Sequence[Measured], b: Sequence[Measured]) -> list[Difference]:
    """Compare the levels that both have."""
    others = {each.level: each for each in b}
    found = []
    for mine in a:
        if mine.level in others:
            found += _compare_level(mine, others[mine.level])
    if not found:
        names = " and ".join(", ".join(each.level for each in own) for own in (a, b))
        raise InvalidSetting("results", names, "have no level in common")
    return found


def _compare_level(mine: Measured, other: Measured) -> list[Difference]:
    records = [[r for r in each.records() if r.ok] for each in (mine, other)]
    found = []
    rates = [_slices(own) for own in records]
    if all(own.any() for own in rates):
        found.append(_difference(mine.level, "output tokens/s", rates, np.mean, better=True))
    for name in ("ttft", "tpot", "e2e"):
        values = [_values(own, name) for own in records]
        if not all(own.any() for own in values):  # nothing, or too quick to be seen
            continue
        label = name.upper()
        found.append(_difference(mine.level, f"{label} mean, ms", values, np.mean))
        found.append(_difference(mine.level, f"{label} p90, ms", values, _p90))
    return found


def _difference(
    level: str, name: str, samples: Sequence[Floats], statistic: Statistic, better: bool = False
) -> Difference:
    a, b = (float(statistic(own)) for own in samples)
    rng = np.random.default_rng(_SEED)
    again_a, again_b = (_resampled(own, statistic, rng) for own in samples)
    again_a = np.maximum(again_a, a * _LEAST)  # slices in which nothing came, all of them
    low, high = np.percentile(again_b / again_a, _INTERVAL)
    return Difference(
        level=level,
        name=name,
        more_is_better=better,
        a=a,
        b=b,
        low=float(low),
        high=float(high),
    )


def _resampled(own: Floats, statistic: Statistic, rng: np.random.Generator) -> Floats:
    """Return the statistic of as many samples, drawn again and again; some at once."""
    found = [
        statistic(rng.choice(own, (_AT_ONCE, len(own))), axis=1)
        for _ in range(_RESAMPLES // _AT_ONCE)
    ]
    return np.concatenate(found)


def _p90(values: Floats, axis: int | None = None) -> Any:
    return np.percentile(values, 90, axis=axis)


def _values(records: Sequence[Record], name: str) -> Floats:
    values = [getattr(record, f"{name}_s") for record in records]
    return np.array([value * 1e3 for value in values if value is not None])


def _slices(records: Sequence[Record]) -> Floats:
    """Return the output tokens a second of equal slices of the level's time."""
    span = span_s(records)
    if not span:
        return np.array([])
    first = min(record.began_s for record in records)
    times = [record.began_s + at - first for record in records for at in record.chunks_s]
    tokens = [
        record.output_tokens / len(record.chunks_s) for record in records for _ in record.chunks_s
    ]
    found, _ = np.histogram(times, bins=_SLICES, range=(0.0, span), weights=tokens)
    return np.asarray(found * _SLICES / span, np.float64)
