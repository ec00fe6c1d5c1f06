"""The promise beside what workers can do at best: what is to be kept, and what cannot be."""

from dataclasses import dataclass

import numpy as np

from stafette.platform.planner.config import SloConfig
from stafette.platform.planner.demand import Demand
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.queueing import Decoding, Values, decoding, prefill_ms

_FALLBACK = 2.0  # times the ITL of a lone sequence, where even that breaks the promise
_HALF = 0.5  # of the promised share is left to queueing where prompts alone use up the rest


@dataclass(frozen=True, slots=True)
class Prompts:
    work_ms: Values
    may_be_late: float  # share of them
    hopeless: float  # share that is late even alone

    def rate(self, demand: Demand) -> float:
        """Return the rate with what has piled up, as if more such prompts came."""
        return demand.rate + demand.backlog_ms / max(float(self.work_ms.mean()), 1e-9)


class Promise:
    """Knows the workers that prefill, those that decode, and the limits."""

    def __init__(self, prefill: EngineModel, decode: EngineModel, slo: SloConfig) -> None:
        self.prefill = prefill
        self.decode = decode
        self.slo = slo

    def prompts(self, demand: Demand, after_ms: float) -> Prompts:
        """Return what prompts take. Those that are late even alone are helped by no number."""
        shape, slo = demand.shape, self.slo
        work = prefill_ms(self.prefill, shape.prompt_tokens, shape.cached_tokens)
        promised = 1 - slo.ttft_percentile / 100
        hopeless = float((work > slo.ttft_ms - after_ms).mean())
        if hopeless <= _HALF * promised:
            return Prompts(work, promised, hopeless)
        return Prompts(work, hopeless + _HALF * promised, hopeless)

    def decoding(self, demand: Demand, workers: int, stolen: float = 0.0) -> Decoding:
        """What has piled up before prefill workers comes to those that decode as it is done."""
        shape = demand.shape
        work = prefill_ms(self.prefill, shape.prompt_tokens, shape.cached_tokens)
        work_ms = float(work.mean())
        rate = demand.rate + demand.backlog_ms / max(work_ms, 1e-9)
        local = rate * demand.local_ms / 1e3 / workers if workers else 0.0
        return decoding(
            self.decode,
            shape,
            rate,
            demand.dispersion,
            workers,
            self.slo.itl_percentile,
            min(stolen + local, 1.0),
            reserved_ms=work_ms,
        )

    def lone_itl_ms(self, demand: Demand) -> float:
        """Return what a sequence takes that has a worker for itself: no number makes it faster."""
        return self.decode.performance.decode_step_ms(1, int(demand.shape.mean_context))

    def itl_to_keep_ms(self, demand: Demand) -> float:
        """Return the promise, or what is aimed at in its place where nothing keeps it."""
        lone = self.lone_itl_ms(demand)
        return self.slo.itl_ms if self.slo.itl_ms >= lone else _FALLBACK * lone

    def after_prefill_ms(self, demand: Demand, step_ms: float) -> float:
        """Return what comes between a prompt's end and its first token: its last chunk, a step."""
        left = demand.shape.mean_prompt * (1 - demand.shape.hit_rate)
        chunk = min(left, self.prefill.performance.max_num_batched_tokens)
        return self.decode.transfer_ms(chunk) + min(step_ms, self.slo.itl_ms)

    def lone_ttft_ms(self, demand: Demand) -> float:
        """Return the promised percentile on idle workers."""
        work = prefill_ms(self.prefill, demand.shape.prompt_tokens, demand.shape.cached_tokens)
        alone = float(np.percentile(work, self.slo.ttft_percentile))
        return alone + self.after_prefill_ms(demand, self.decode.performance.step_ms)
