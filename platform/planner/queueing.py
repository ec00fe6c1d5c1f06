"""How long requests wait, and how many decode at once: what share of them is later than promised.

Prompts queue: M/G/c, its waiting probability by Erlang's C, its waiting time scaled for the spread
of arrivals and of work as Allen and Cunneen do, its tail exponential. Answers share a worker: the
more there are, the longer each step; their number wanders around its mean as a birth-death process
does whose deaths slow down as it grows.
"""

from dataclasses import dataclass
from math import ceil, inf, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.shape import Shape

Values = NDArray[np.float64]

_MOST_BUSY = 0.98  # of a worker: above it no steady state is counted on
_KV_FILL = 0.92  # of a worker's KV; the rest is rounding to blocks and growth


def erlang_c(workers: int, load: float) -> float:
    """Return the probability of having to wait; `load` is the mean number of busy workers."""
    if load >= workers:
        return 1.0
    blocked = 1.0
    for count in range(1, workers + 1):
        blocked = load * blocked / (count + load * blocked)
    busy = load / workers
    return blocked / (1 - busy + busy * blocked)


def prefill_ms(model: EngineModel, tokens: Values, cached: Values) -> Values:
    """Return what each prompt takes alone: `Performance.prefill_ms` for arrays."""
    p = model.performance
    left = np.maximum(tokens - cached, 1.0)
    steps = np.ceil(left / p.max_num_batched_tokens)
    pairs = left * (cached + left / 2)
    cost: Values = steps * p.step_ms + left * p.prefill_ms_per_token + pairs * p.prefill_ms_per_pair
    return cost


@dataclass(frozen=True, slots=True)
class Waiting:
    """What prompts find in front of a number of workers."""

    busy: float  # share of the time
    probability: float  # of having to wait
    mean_ms: float  # of those who wait

    @property
    def steady(self) -> bool:
        return self.busy < _MOST_BUSY

    def above(self, ms: Values) -> Values:
        """Return the probability of waiting longer than each of `ms`."""
        if not self.steady:
            return np.ones_like(ms)
        tail = np.exp(-np.maximum(ms, 0.0) / max(self.mean_ms, 1e-9))
        return np.where(ms < 0, 1.0, self.probability * tail)


def waiting(work_ms: Values, rate: float, dispersion: float, workers: int) -> Waiting:
    """Return the waiting of `rate` requests a second; `dispersion` is 1 where they are random."""
    mean = float(work_ms.mean())
    load = rate * mean / 1e3
    busy = load / workers if workers else inf
    if busy >= _MOST_BUSY:
        return Waiting(busy, 1.0, inf)
    spread = float(work_ms.var()) / max(mean * mean, 1e-12)
    slow = (dispersion + spread) / 2
    mean_wait = max(slow, 0.5) * mean / (workers * (1 - busy))
    return Waiting(busy, erlang_c(workers, load), mean_wait)


def late_share(wait: Waiting, own_ms: Values, limit_ms: float) -> float:
    """Return the share of requests whose waiting and own time together exceed the limit."""
    return float(wait.above(limit_ms - own_ms).mean())


def percentile_ms(wait: Waiting, own_ms: Values, percentile: float) -> float:
    """Return the percentile of waiting and own time together."""
    if not wait.steady:
        return inf
    late = 1 - percentile / 100
    low, high = 0.0, float(own_ms.max()) + wait.mean_ms * 20 + 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if late_share(wait, own_ms, middle) > late else (low, middle)
    return high


@dataclass(frozen=True, slots=True)
class Decoding:
    """What answers find on each of a number of workers."""

    sequences: float  # on one, mean
    most_sequences: float  # at the percentile
    itl_ms: float  # mean
    itl_ms_at: float  # at the percentile
    kv_tokens: float  # on one, at the percentile

    def fits(self, model: EngineModel) -> bool:
        full = self.kv_tokens > _KV_FILL * model.kv_tokens
        return not full and self.most_sequences <= model.max_num_seqs


def decoding(
    model: EngineModel,
    shape: Shape,
    rate: float,
    dispersion: float,
    workers: int,
    percentile: float,
    stolen: float = 0.0,
    reserved_ms: float = 0.0,
) -> Decoding:
    """Return the decoding of `rate` answers a second; `stolen` is the time that prompts take.

    A sequence holds its KV for `reserved_ms` before it decodes. Few long contexts make the KV in
    use wander more than the number of sequences does.
    """
    p = model.performance
    context = shape.mean_context
    each_ms = p.decode_ms_per_seq + context * p.decode_ms_per_kv_token
    tokens_ms = rate * shape.mean_output / 1e3 / workers if workers else inf  # a millisecond
    share = 1 - stolen
    slack = share - tokens_ms * each_ms
    if slack <= 1 - _MOST_BUSY:
        return Decoding(inf, inf, inf, inf, inf)
    mean = tokens_ms * p.step_ms / slack
    itl = (p.step_ms + mean * each_ms) / share
    wander = mean * workers * max(dispersion, 1.0) * share / slack
    beyond = max(NormalDist().inv_cdf(percentile / 100), 0.0) * sqrt(wander)
    most = ceil((mean * workers + beyond) / workers - 1e-9) if mean > 0 else 0
    at = (p.step_ms + most * each_ms) / share
    ahead = rate * reserved_ms / 1e3
    uneven = sqrt((wander + ahead) * (1 + shape.context_spread))
    held = mean * workers + ahead + NormalDist().inv_cdf(percentile / 100) * uneven
    return Decoding(mean, most, itl, at, max(held, 0.0) / workers * context)


def dispersion_of(counts: Values) -> float:
    """Return variance over mean of counts in equal intervals: 1 where requests are random."""
    if len(counts) < 8 or counts.mean() <= 0:
        return 1.0
    changes = np.diff(counts)  # so that a level that moves is not taken for bursts
    return float(np.clip((changes**2).mean() / 2 / counts.mean(), 0.5, 20.0))
