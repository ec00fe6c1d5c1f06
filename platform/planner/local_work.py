"""Prefilling that workers do who are there to decode: short prompts, and what no hand-over brings.

It takes time from the answers beside it, so that it counts where decode workers are sized.
"""

from collections import deque
from collections.abc import Sequence

from stafette.platform.planner.observation import Observation, WorkerState
from stafette.router.performance import Performance, StepReport

_KEPT_S = 120.0
_FEW = 20  # requests, below which a mean means little


class LocalWork:
    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, float]] = deque()  # at, requests, milliseconds
        self._roles: dict[str, str] = {}

    def see(
        self, seen: Observation, workers: Sequence[WorkerState], performance: Performance
    ) -> float:
        """Return the milliseconds that each request cost of late."""
        spent = sum(
            _prefill_ms(step, performance)
            for worker in workers
            if self._decodes(worker)
            for step in worker.steps
        )
        self._roles = {worker.name: worker.role for worker in workers}
        self._seen.append((seen.at, seen.arrivals, spent))
        while self._seen[0][0] < seen.at - _KEPT_S:
            self._seen.popleft()
        requests = sum(count for _, count, _ in self._seen)
        return sum(ms for _, _, ms in self._seen) / requests if requests >= _FEW else 0.0

    def _decodes(self, worker: WorkerState) -> bool:
        """Who has just changed its role works off what it had before."""
        return worker.role == "decode" == self._roles.get(worker.name)


def _prefill_ms(step: StepReport, performance: Performance) -> float:
    if not step.usable:
        return 0.0
    by_tokens = step.prefill_tokens * performance.prefill_ms_per_token
    return by_tokens + step.prefill_pairs * performance.prefill_ms_per_pair
