"""Ray Serve's own autoscaling: each pool by itself, by how many requests it has under way.

desired = ceil(ongoing / target), the mean of the last 30 s; up when that has been so for 30 s, down
for 600 s, its defaults. The target is set well: half of the room that the promise leaves a worker.
"""

from collections import deque
from dataclasses import dataclass, field
from math import ceil

from stafette.platform.twin.twin import Twin

_LOOK_BACK_S = 30.0
_UP_S, _DOWN_S = 30.0, 600.0
_PUSH_S = 10.0  # between two reports of a replica


@dataclass(slots=True)
class _Pool:
    target_ongoing: float
    least: int
    most: int
    seen: deque[tuple[float, int]] = field(default_factory=deque)
    above_since: float | None = None
    below_since: float | None = None


class QueueLength:
    def __init__(
        self, target_ongoing: dict[str, float], bounds: dict[str, tuple[int, int]]
    ) -> None:
        self._pools = {n: _Pool(t, *bounds[n]) for n, t in target_ongoing.items()}
        self._next_s = 0.0

    def __call__(self, twin: Twin, now: float) -> None:
        if now < self._next_s:
            return
        self._next_s = now + _PUSH_S
        twin.observe()
        for name, pool in self._pools.items():
            self._scale(twin, now, name, pool)

    def _scale(self, twin: Twin, now: float, name: str, pool: _Pool) -> None:
        pool.seen.append((now, _ongoing(twin, name)))
        while pool.seen[0][0] <= now - _LOOK_BACK_S:
            pool.seen.popleft()
        mean = sum(count for _, count in pool.seen) / len(pool.seen)
        wanted = min(max(ceil(mean / pool.target_ongoing), pool.least), pool.most)
        current = twin.fleet.pools[name].target
        pool.above_since = (pool.above_since or now) if wanted > current else None
        pool.below_since = (pool.below_since or now) if wanted < current else None
        up = pool.above_since is not None and now - pool.above_since >= _UP_S
        down = pool.below_since is not None and now - pool.below_since >= _DOWN_S
        if up or down:
            twin.fleet.set_replicas(name, wanted)
            pool.above_since = pool.below_since = None


def _ongoing(twin: Twin, pool: str) -> int:
    count = 0
    for replica in twin.fleet.of(pool):
        if replica.worker is not None:
            stats = replica.worker.stats().scheduler
            count += stats.num_running + stats.num_waiting
    return count
