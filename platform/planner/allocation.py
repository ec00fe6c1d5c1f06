"""Turns workers by role into replicas by pool, within what pools, budget and cluster allow."""

from collections.abc import Mapping
from dataclasses import dataclass

from stafette.platform.planner.demand import Split
from stafette.platform.planner.pool_spec import PoolSpec
from stafette.workers.service.standing import ROLES, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What there may be."""

    pools: Mapping[str, PoolSpec]
    caps: Mapping[str, int]  # by pool: its maximum, or less while its replicas do not come
    max_gpus: float | None = None

    def least(self, pool: str) -> int:
        return self.pools[pool].limits.min_replicas

    def gpus(self, replicas: Mapping[str, int]) -> float:
        return sum(n * self.pools[p].limits.gpus_per_replica for p, n in replicas.items())

    def affords(self, replicas: Mapping[str, int], pool: str) -> bool:
        """Return whether there may be one more of a pool."""
        if replicas[pool] >= self.caps[pool]:
            return False
        more = {**replicas, pool: replicas[pool] + 1}
        return self.max_gpus is None or self.gpus(more) <= self.max_gpus + 1e-9

    def cost(self, pool: str) -> float:
        limits = self.pools[pool].limits
        return limits.cost_per_hour or limits.gpus_per_replica


@dataclass(frozen=True, slots=True)
class Allocation:
    replicas: Mapping[str, int]
    limit: str | None = None  # that kept it from being what was needed


def share_total(total: int, needed: Split, current: Mapping[str, int], room: Room) -> Allocation:
    """Reach a total, where every worker can take every role: by the fewest changes."""
    replicas = {p: _clip(current.get(p, 0), p, room) for p in room.pools}
    while sum(replicas.values()) < total:
        able = [p for p in replicas if room.affords(replicas, p)]
        if not able:
            return Allocation(replicas, _limit(replicas, room))
        replicas[
            min(able, key=lambda p: (room.cost(p), -_short(p, replicas, needed, room), p))
        ] += 1
    while sum(replicas.values()) > total:
        able = [p for p in replicas if replicas[p] > room.least(p)]
        if not able:
            return Allocation(replicas, "min_replicas")
        replicas[
            max(able, key=lambda p: (room.cost(p), -_short(p, replicas, needed, room), p))
        ] -= 1
    return Allocation(replicas)


def share_by_role(needed: Split, room: Room, worth: Mapping[str, float]) -> Allocation:
    """Fill each role from its own pools, the ones that give most for their cost first.

    `worth` says how many of the role's best workers one of a pool stands for.
    """
    replicas = {p: room.least(p) for p in room.pools}
    limit = None
    for role in ROLES:
        count = getattr(needed, role)
        pools = [p for p in room.pools if room.pools[p].role == role]
        pools.sort(key=lambda p: (room.cost(p) / max(worth[p], 1e-9), p))
        left = count - sum(replicas[p] * worth[p] for p in pools)
        for pool in pools:
            while left > 1e-9 and replicas[pool] < room.caps[pool]:
                replicas[pool] += 1
                left -= worth[pool]
        if pools and left > 1e-9:
            limit = _limit(replicas, room)
        elif pools and left < -1 + 1e-9:
            limit = limit or "min_replicas"
    affordable = _within_budget(dict(replicas), needed, room)
    return Allocation(affordable, limit if affordable == replicas else "max_gpus")


def _within_budget(replicas: dict[str, int], needed: Split, room: Room) -> dict[str, int]:
    """Take from the role that lacks least, when all roles together cost too much."""
    while room.max_gpus is not None and room.gpus(replicas) > room.max_gpus + 1e-9:
        able = [p for p in replicas if replicas[p] > room.least(p)]
        if not able:
            break
        replicas[min(able, key=lambda p: (_short(p, replicas, needed, room), p))] -= 1
    return replicas


def _short(pool: str, replicas: Mapping[str, int], needed: Split, room: Room) -> float:
    """Return how many workers the pool's role lacks; below zero: has too many."""
    role: Role = room.pools[pool].role
    there = sum(n for p, n in replicas.items() if room.pools[p].role == role)
    return getattr(needed, role) - there  # type: ignore[no-any-return]


def _clip(count: int, pool: str, room: Room) -> int:
    return max(room.least(pool), min(count, room.caps[pool]))


def _limit(replicas: Mapping[str, int], room: Room) -> str:
    full = [p for p in replicas if replicas[p] < room.pools[p].limits.max_replicas]
    if full and any(replicas[p] < room.caps[p] for p in full):
        return "max_gpus"
    return "start-up limit" if full else "max_replicas"
