"""Which workers go when a pool shrinks: those with least under way, the newest of them first."""

from collections.abc import Mapping

from stafette.platform.planner.observation import Observation, WorkerState


class Releasing:
    """Remembers whom it chose until they are gone, or are wanted again."""

    def __init__(self) -> None:
        self._going: set[str] = set()

    def choose(self, seen: Observation, replicas: Mapping[str, int]) -> list[str]:
        chosen: set[str] = set()
        for pool, wanted in replicas.items():
            there = [w for w in seen.workers if w.pool == pool]
            chosen.update(self._of_pool(there, len(there) - wanted))
        self._going = chosen
        return sorted(chosen)

    def _of_pool(self, there: list[WorkerState], surplus: int) -> list[str]:
        if surplus <= 0:
            return []
        order = sorted(there, key=lambda w: (w.name not in self._going, not w.draining, *_worth(w)))
        return [worker.name for worker in order[:surplus]]


def _worth(worker: WorkerState) -> tuple[int, float, str]:
    return worker.running + worker.waiting, worker.age_s, worker.name
