"""Is B another than A? Ratios with 95 % intervals, by the bootstrap.

Blocks of requests that began one behind the other are drawn again and again, as many as the level
went around: those that run at once share batches, and are not independent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stafette.platform.bench.measured import Measured
from stafette.platform.bench.record import Record, in_order
from stafette.platform.bench.summary import span_s
from stafette.platform.frontend.errors import InvalidSetting

_RESAMPLES = 1000
_AT_ONCE = 50
_LEAST = 1e-3
_LEAST_BLOCKS = 5
_INTERVAL = (2.5, 97.5)
_SEED = 0

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # of each row


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
    sides = [in_order([r for r in each.records() if r.ok]) for each in (mine, other)]
    found = []
    rates = [_throughput(own) for own in sides]
    if all(len(own) for own in sides):
        found.append(_difference(mine.level, "output tokens/s", sides, rates, _rate, better=True))
    for name in ("ttft", "tpot", "e2e"):
        values = [_values(own, name) for own in sides]
        if not all(own.any() for own in values):  # nothing, or too quick to be seen
            continue
        for statistic, what in ((_mean, "mean"), (_p90, "p90")):
            title = f"{name.upper()} {what}, ms"
            found.append(_difference(mine.level, title, sides, values, statistic))
    return found


def _difference(
    level: str,
    name: str,
    sides: Sequence[Sequence[Record]],
    values: Sequence[Floats],
    statistic: Statistic,
    better: bool = False,
) -> Difference:
    a, b = (float(statistic(own[np.newaxis])[0]) for own in values)
    rng = np.random.default_rng(_SEED)
    again_a, again_b = (
        _resampled(own, _num_blocks(side), statistic, rng)
        for own, side in zip(values, sides, strict=True)
    )
    low, high = np.percentile(again_b / np.maximum(again_a, a * _LEAST), _INTERVAL)
    return Difference(
        level=level,
        name=name,
        more_is_better=better,
        a=a,
        b=b,
        low=float(low),
        high=float(high),
    )


def _resampled(
    values: Floats, num_blocks: int, statistic: Statistic, rng: np.random.Generator
) -> Floats:
    """Return the statistic of samples made of blocks that are drawn again and again."""
    num_blocks = min(num_blocks, len(values))
    size = len(values) // num_blocks
    blocks = values[: num_blocks * size].reshape(num_blocks, size, *values.shape[1:])
    found = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        drawn = blocks[rng.integers(num_blocks, size=(_AT_ONCE, num_blocks))]
        found.append(statistic(drawn.reshape(_AT_ONCE, num_blocks * size, *values.shape[1:])))
    return np.concatenate(found)


def _num_blocks(records: Sequence[Record]) -> int:
    """Return how often the level went around: requests that run at once are no independent ones."""
    busy_s = sum(record.e2e_s or 0.0 for record in records)
    span = span_s(records)
    at_once = busy_s / span if span else 1.0
    return max(_LEAST_BLOCKS, round(len(records) / max(1.0, at_once)))


def _throughput(records: Sequence[Record]) -> Floats:
    """Return of each request its tokens, its time, and how many ran at once."""
    span = span_s(records)
    busy_s = sum(record.e2e_s or 0.0 for record in records)
    at_once = busy_s / span if span else 0.0
    return np.array([(r.output_tokens, r.e2e_s or 0.0, at_once) for r in records])


def _rate(values: Floats) -> Floats:
    """Return tokens a second by Little's law: of each request at a time its tokens by its time."""
    return np.asarray(values[..., 2].mean(1) * values[..., 0].sum(1) / values[..., 1].sum(1))


def _mean(values: Floats) -> Floats:
    return np.asarray(values.mean(1))


def _p90(values: Floats) -> Floats:
    return np.asarray(np.percentile(values, 90, axis=1))


def _values(records: Sequence[Record], name: str) -> Floats:
    values = [getattr(record, f"{name}_s") for record in records]
    return np.array([value * 1e3 for value in values if value is not None])
