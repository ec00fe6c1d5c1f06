"""What workers have before them at this moment: the signals that no forecast waits for."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from stafette.platform.planner.config import SloConfig
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.observation import WorkerState
from stafette.platform.planner.shape import Shape

_AHEAD_S = 5.0  # for so long what has grown is taken to go on growing
_KV_FULL = 0.9


@dataclass(frozen=True, slots=True)
class Live:
    """All workers together."""

    queued_tokens: int
    running: int
    used_kv_tokens: int
    growth: float  # of `running`, a second

    def least_decode(self, model: EngineModel, shape: Shape, slo: SloConfig) -> int:
        """Return how few workers hold what runs, and decode it as fast as promised."""
        p, context = model.performance, max(shape.mean_context, 1.0)
        running = self.running + max(0.0, self.growth) * _AHEAD_S
        each_ms = p.decode_ms_per_seq + context * p.decode_ms_per_kv_token
        by_itl = max((slo.itl_ms - p.step_ms) / max(each_ms, 1e-9), 1.0)
        most = min(by_itl, model.max_num_seqs, _KV_FULL * model.kv_tokens / context)
        by_kv = self.used_kv_tokens / (_KV_FULL * model.kv_tokens)
        return max(1, ceil(running / max(most, 1.0) - 1e-9), ceil(by_kv - 1e-9))


class LiveSeen:
    def __init__(self) -> None:
        self._past: deque[tuple[float, int]] = deque()

    def see(self, at: float, workers: Sequence[WorkerState]) -> Live:
        decoding = [w for w in workers if w.role != "prefill"]
        running = sum(w.running for w in decoding)
        self._past.append((at, running))
        while self._past[0][0] < at - _AHEAD_S:
            self._past.popleft()
        then, before = self._past[0]
        growth = (running - before) / (at - then) if at > then else 0.0
        return Live(
            queued_tokens=sum(w.queued_tokens for w in workers),
            running=running,
            used_kv_tokens=sum(w.used_kv_tokens for w in decoding),
            growth=growth,
        )
