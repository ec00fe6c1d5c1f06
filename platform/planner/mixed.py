"""Workers that do both: prompts and answers take time from each other.

While a prompt is computed the answers beside it wait for its chunks, so that a request's mean ITL
depends on how many prompts happen to come during its life.
"""

from dataclasses import dataclass
from math import inf

import numpy as np

from stafette.platform.planner.demand import Demand, Speeds
from stafette.platform.planner.least import least
from stafette.platform.planner.promise import Promise
from stafette.platform.planner.queueing import (
    Decoding,
    Values,
    Waiting,
    late_share,
    percentile_ms,
    waiting,
)


@dataclass(frozen=True, slots=True)
class _Mixture:
    """What there is on each of a number of workers."""

    running: Decoding
    own_ms: Values  # of prompts, with the answers beside them
    wait: Waiting
    may_be_late: float
    itl_spread_ms: Values  # of each answer's mean ITL, by the prompts that come in between

    def late_itl(self, limit_ms: float) -> float:
        """Return the share of answers whose mean ITL exceeds the limit."""
        beyond = (limit_ms - self.running.itl_ms_at) / self.itl_spread_ms
        return float(_above(beyond).mean())


class Mixed:
    def __init__(self, promise: Promise) -> None:
        self._promise = promise

    def fewest(self, demand: Demand, most: int) -> int | None:
        """Return the fewest workers; None where not even `most` keep the promise."""
        if demand.least_decode > most or not self.keeps(demand, most):
            return None
        return least(demand.least_decode, lambda n: self.keeps(demand, n), most)

    def keeps(self, demand: Demand, workers: int) -> bool:
        slo = self._promise.slo
        found = self._mixture(demand, workers)
        if found is None or not found.running.fits(self._promise.decode):
            return False
        if found.late_itl(self._promise.itl_to_keep_ms(demand)) > 1 - slo.itl_percentile / 100:
            return False
        late = late_share(found.wait, found.own_ms, slo.ttft_ms)
        return found.wait.steady and late <= found.may_be_late

    def speeds(self, demand: Demand, workers: int) -> Speeds:
        found, slo = self._mixture(demand, workers), self._promise.slo
        if found is None:
            return Speeds(inf, inf, fits=False)
        ttft = percentile_ms(found.wait, found.own_ms, slo.ttft_percentile)
        low, high = found.running.itl_ms_at, found.running.itl_ms_at + 1e4
        for _ in range(40):
            middle = (low + high) / 2
            late = found.late_itl(middle) > 1 - slo.itl_percentile / 100
            low, high = (middle, high) if late else (low, middle)
        return Speeds(ttft, high, found.running.fits(self._promise.decode))

    def _mixture(self, demand: Demand, workers: int) -> _Mixture | None:
        """None: prompts alone take all the time."""
        shape, p = demand.shape, self._promise.prefill.performance
        prompts = self._promise.prompts(demand, p.step_ms)
        left = np.maximum(shape.prompt_tokens - shape.cached_tokens, 1.0)
        steps = np.ceil(left / p.max_num_batched_tokens)
        alone = prompts.work_ms - steps * p.step_ms  # a step would have been made for the answers
        rate = prompts.rate(demand)
        stolen = rate * float(alone.mean()) / 1e3 / workers
        if stolen >= 1:
            return None
        running = self._promise.decoding(demand, workers, stolen)
        if running.itl_ms == inf:
            return None
        batch_ms = running.itl_ms * (1 - stolen) - p.step_ms
        own = prompts.work_ms + steps * batch_ms + running.itl_ms
        wait = waiting(own, rate, demand.dispersion, workers)
        return _Mixture(
            running, own, wait, prompts.may_be_late, _spread(demand, running, alone, rate / workers)
        )


def _spread(demand: Demand, running: Decoding, alone: Values, rate: float) -> Values:
    outputs = demand.shape.output_tokens
    seconds = outputs * running.itl_ms / 1e3
    spread: Values = np.sqrt(rate * seconds * float((alone**2).mean())) / outputs + 1e-9
    return spread


def _above(deviations: Values) -> Values:
    """Return a normal value's probability of being so far above its mean; to a hundredth."""
    share: Values = 1 / (1 + np.exp(1.702 * np.clip(deviations, -50.0, 50.0)))
    return share
