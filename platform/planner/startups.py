"""Replicas that were asked for and are not there yet: how long that takes, and when to give up."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from stafette.platform.planner.config import PoolLimits
from stafette.platform.planner.observation import PoolState

_TRUST = 0.3  # of a new measurement of the start-up time
_AGAIN = 4.0  # start-up limits until a pool that was stuck is asked for more again


@dataclass(slots=True)
class _Pending:
    limits: PoolLimits
    startup_s: float
    asked: deque[float] = field(default_factory=deque)  # when, for each replica that is missing
    ready: int = 0
    target: int = 0
    stuck_until: float | None = None
    num_stuck: int = 0
    last_ready_at: float | None = None


class Startups:
    def __init__(self, limits: Mapping[str, PoolLimits]) -> None:
        self._pools = {name: _Pending(each, each.startup_s) for name, each in limits.items()}

    def see(self, at: float, states: Mapping[str, PoolState]) -> None:
        for name, pending in self._pools.items():
            if (state := states.get(name)) is not None:
                self._see(at, pending, state)

    @property
    def pending(self) -> bool:
        """Return whether a replica is waited for."""
        return any(pending.asked for pending in self._pools.values())

    def startup_s(self, pool: str) -> float:
        return self._pools[pool].startup_s

    def cap(self, pool: str, at: float) -> int:
        """Return how many replicas a pool can have at the moment."""
        pending = self._pools[pool]
        if pending.stuck_until is not None and at < pending.stuck_until:
            return min(pending.limits.max_replicas, max(pending.ready, pending.limits.min_replicas))
        return pending.limits.max_replicas

    def stuck(self, at: float) -> list[str]:
        """Return the pools whose replicas do not come."""
        return [
            n for n, p in self._pools.items() if p.stuck_until is not None and at < p.stuck_until
        ]

    def fresh(self, at: float) -> bool:
        """Return whether a replica has come so lately that its caches are still cold."""
        times = [p.last_ready_at for p in self._pools.values() if p.last_ready_at is not None]
        return any(at - t < 60.0 for t in times)

    def _see(self, at: float, pending: _Pending, state: PoolState) -> None:
        for _ in range(state.ready - pending.ready):
            pending.last_ready_at = at
            if pending.asked:
                took = at - pending.asked.popleft()
                pending.startup_s += _TRUST * (took - pending.startup_s)
                pending.stuck_until = None
        pending.ready, pending.target = state.ready, state.target
        missing = max(0, state.target - state.ready)
        while len(pending.asked) > missing:
            pending.asked.pop()
        while len(pending.asked) < missing:
            pending.asked.append(at)
        if pending.asked and at - pending.asked[0] > pending.limits.startup_limit_s:
            pending.stuck_until = at + _AGAIN * pending.limits.startup_limit_s
            pending.num_stuck += 1
            pending.asked.clear()
