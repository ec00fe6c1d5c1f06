"""How fast one worker takes tokens in and gives tokens out: no queue makes a stage faster.

A pool whose tokens come faster than its workers' velocities together is too small whatever the
latencies say at the moment.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from stafette.platform.planner.config import SloConfig
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.queueing import prefill_ms
from stafette.platform.planner.shape import Shape

_USABLE = 0.95  # of a velocity


@dataclass(frozen=True, slots=True)
class Least:
    """Workers below which tokens pile up."""

    prefill: int
    decode: int


@dataclass(frozen=True, slots=True)
class Velocity:
    """Tokens a second, of one worker."""

    prefill: float  # of prompts, computed
    decode: float  # of answers, within the promised ITL
    transfer: float  # of KV into a decode worker

    @classmethod
    def of(cls, model: EngineModel, shape: Shape, slo: SloConfig) -> "Velocity":
        work = prefill_ms(model, shape.prompt_tokens, shape.cached_tokens)
        computed = float((shape.prompt_tokens - shape.cached_tokens).sum())
        return cls(
            prefill=max(computed, 1.0) / float(work.sum()) * 1e3,
            decode=_decode_velocity(model, shape, slo),
            transfer=1e3 / max(model.transfer_tokens_ms(1.0), 1e-12),
        )

    def least(self, rate: float, shape: Shape) -> Least:
        """Return how few workers can take `rate` requests a second at all."""
        computed = rate * shape.mean_prompt * (1 - shape.hit_rate)
        prefill = ceil(computed / (_USABLE * self.prefill))
        answers = rate * shape.mean_output / self.decode
        moved = rate * shape.mean_prompt / self.transfer
        return Least(max(1, prefill), max(1, ceil(max(answers, moved) / _USABLE)))

    def work_s(self, shape: Shape) -> tuple[float, float]:
        """Return how long a request takes a prefill worker and a decode worker that are full."""
        computed = shape.mean_prompt * (1 - shape.hit_rate)
        return computed / self.prefill, shape.mean_output / self.decode

    def as_numbers(self) -> Mapping[str, float]:
        return {
            "prefill_tokens_per_s": self.prefill,
            "decode_tokens_per_s": self.decode,
            "transfer_tokens_per_s": self.transfer,
        }


def _decode_velocity(model: EngineModel, shape: Shape, slo: SloConfig) -> float:
    """Return what a worker gives when it is as full as KV, batch and the promise allow."""
    p, most = model.performance, most_decoding(model, shape, slo)
    return most / (p.step_ms + most * _each_ms(model, shape)) * 1e3


def most_decoding(model: EngineModel, shape: Shape, slo: SloConfig) -> float:
    """Return how many sequences a worker decodes at most."""
    by_itl = (slo.itl_ms - model.performance.step_ms) / max(_each_ms(model, shape), 1e-9)
    by_kv = model.kv_tokens / max(shape.mean_context, 1.0)
    return max(1.0, min(model.max_num_seqs, by_kv, by_itl))


def _each_ms(model: EngineModel, shape: Shape) -> float:
    p = model.performance
    return p.decode_ms_per_seq + shape.mean_context * p.decode_ms_per_kv_token
