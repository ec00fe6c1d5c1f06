"""Prefilling that workers do who are there to decode: short prompts, and what no hand-over brings.

It takes time from the answers beside it, so that it counts where decode workers are sized. Routers
let whoever is idle compute whole prompts, and everybody when prompts pile up; prefill workers are
sized for these already. Hence only what is done beside a good number of answers, while nothing is
piled up, is looked at.
"""

from collections import deque
from collections.abc import Sequence

from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.observation import WorkerState
from stafette.platform.planner.shape import Shape
from stafette.router.performance import Performance, StepReport

_KEPT_S = 600.0
_FEW = 20  # requests, below which a mean means little


def expected_ms(model: EngineModel, shape: Shape) -> float:
    """Return what is left of each prompt when only whole blocks are handed over."""
    tokens = min(model.block_size / 2, shape.mean_prompt)
    pairs = tokens * max(shape.mean_prompt - tokens / 2, 0.0)
    p = model.performance
    return tokens * p.prefill_ms_per_token + pairs * p.prefill_ms_per_pair


class LocalWork:
    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, float]] = deque()  # at, tokens, milliseconds
        self._tokens = 0
        self._ms = 0.0
        self._roles: dict[str, str] = {}

    def see(
        self,
        at: float,
        workers: Sequence[WorkerState],
        model: EngineModel,
        shape: Shape,
        busy_from: float,
        piled_up: bool = False,
    ) -> float:
        """Return what each request costs workers that decode at least `busy_from` sequences."""
        serving = [] if piled_up else [w for w in workers if self._decodes(w)]
        steps = [s for w in serving for s in w.steps if s.usable]
        busy = [s for s in steps if s.decode_sequences >= busy_from]
        self._roles = {worker.name: worker.role for worker in workers}
        self._note(
            at,
            sum(step.decode_sequences for step in busy),
            sum(_prefill_ms(step, model.performance) for step in busy),
        )
        requests = self._tokens / max(shape.mean_output, 1.0)
        return self._ms / requests if requests >= _FEW else expected_ms(model, shape)

    def _note(self, at: float, tokens: int, ms: float) -> None:
        if tokens:
            self._seen.append((at, tokens, ms))
            self._tokens += tokens
            self._ms += ms
        while self._seen and self._seen[0][0] < at - _KEPT_S:
            _, tokens, ms = self._seen.popleft()
            self._tokens -= tokens
            self._ms -= ms

    def _decodes(self, worker: WorkerState) -> bool:
        """Who has just changed its role works off what it had before."""
        return worker.role == "decode" == self._roles.get(worker.name)


def _prefill_ms(step: StepReport, performance: Performance) -> float:
    by_tokens = step.prefill_tokens * performance.prefill_ms_per_token
    return by_tokens + step.prefill_pairs * performance.prefill_ms_per_pair
