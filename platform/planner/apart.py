"""Prefill workers and decode workers: how few keep the promise, and how fast some are.

The percentiles are kept for what comes. What has piled up is late, and workers are busy all the
time until it is done: it only takes as many as get it done in time.
"""

from stafette.platform.planner.demand import Demand, Speeds, Split
from stafette.platform.planner.least import least
from stafette.platform.planner.promise import Promise
from stafette.platform.planner.queueing import late_share, percentile_ms, waiting
from stafette.platform.planner.velocity import Least


class Apart:
    def __init__(self, promise: Promise) -> None:
        self._promise = promise

    def fewest(self, demand: Demand, floor: Least) -> Split:
        """Return the fewest workers, of which no pool is slower than its tokens come."""
        at_least = max(floor.decode, demand.least_decode)
        decode = least(at_least, lambda n: self._decodes(demand, n))
        prefill = least(floor.prefill, lambda n: self._prefills(demand, n))
        return Split(prefill=prefill, decode=decode)

    def keeps(self, demand: Demand, prefill: int, decode: int) -> bool:
        return self._decodes(demand, decode) and self._prefills(demand, prefill)

    def late_share(self, demand: Demand, prefill: int, decode: int) -> float:
        """Return the share of late first tokens; where answers are too slow, all are late."""
        return self._late_prompts(demand, prefill) if self._decodes(demand, decode) else 1.0

    def speeds(self, demand: Demand, prefill: int, decode: int) -> Speeds:
        promise = self._promise
        running = promise.decoding(demand, decode)
        after = promise.after_prefill_ms(demand, running.itl_ms)
        prompts = promise.prompts(demand, after)
        wait = waiting(prompts.work_ms, prompts.rate(demand), demand.dispersion, prefill)
        ttft = percentile_ms(wait, prompts.work_ms + after, promise.slo.ttft_percentile)
        return Speeds(ttft, running.itl_ms_at, running.fits(promise.decode))

    def _decodes(self, demand: Demand, workers: int) -> bool:
        if demand.rate <= 0:
            return workers > 0
        limit, model = self._promise.itl_to_keep_ms(demand), self._promise.decode
        running = self._promise.decoding(demand.lasting, workers)
        if running.itl_ms_at > limit or not running.fits(model):
            return False
        if not demand.backlog_ms:
            return True
        working_off = self._promise.decoding(demand, workers)
        return working_off.itl_ms <= limit and working_off.fits(model)

    def _prefills(self, demand: Demand, workers: int) -> bool:
        prompts = self._promise.prompts(demand, self._after_ms(demand))
        if self._late_prompts(demand.lasting, workers) > prompts.may_be_late:
            return False
        return waiting(prompts.work_ms, prompts.rate(demand), demand.dispersion, workers).steady

    def _late_prompts(self, demand: Demand, workers: int) -> float:
        after = self._after_ms(demand)
        prompts = self._promise.prompts(demand, after)
        wait = waiting(prompts.work_ms, prompts.rate(demand), demand.dispersion, workers)
        if not wait.steady:
            return 1.0
        return late_share(wait, prompts.work_ms, self._promise.slo.ttft_ms - after)

    def _after_ms(self, demand: Demand) -> float:
        """Return the most that may come after a prompt: decode workers as full as they may be."""
        return self._promise.after_prefill_ms(demand, self._promise.slo.itl_ms)
