"""The slow lever: how many replicas each pool should have when those asked for now are there."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from stafette.platform.planner.allocation import Allocation, Room, share_by_role, share_total
from stafette.platform.planner.beliefs import Beliefs
from stafette.platform.planner.config import PlannerConfig
from stafette.platform.planner.demand import Demand, Split
from stafette.platform.planner.holding import Patience
from stafette.platform.planner.levels import Levels
from stafette.platform.planner.plan import Violation
from stafette.platform.planner.pool_spec import PoolSpec
from stafette.platform.planner.resting import least_at_rest
from stafette.platform.planner.situation import Situation
from stafette.platform.planner.sizing import MOST_TOGETHER, Sizer, Sizing
from stafette.platform.planner.startups import Startups
from stafette.workers.service.standing import ROLES

_RESTS_S = 30.0  # without a request, from which the fleet rests
# A replica that is kept idle for longer than its start takes has cost more than starting it again.
_STARTS = 1.5
_MARGIN = 1.1  # fewer replicas must be enough for a little more than is likely


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    replicas: Mapping[str, int]
    needed: Split
    decided_by: str
    capacity: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Replicas:
    def __init__(
        self,
        config: PlannerConfig,
        pools: Mapping[str, PoolSpec],
        beliefs: Beliefs,
        startups: Startups,
    ) -> None:
        self._config = config
        self._pools = pools
        self._beliefs = beliefs
        self._startups = startups
        hold_s = config.hold_down_s
        if hold_s is None:
            hold_s = _STARTS * max(spec.limits.startup_s for spec in pools.values())
        self._patience = {role: Patience(hold_s) for role in (*ROLES, "all")}
        self._levels = {role: Levels() for role in self._patience}
        self._wish: Wish | None = None
        self._decided_at = float("-inf")

    def decide(self, now: Situation) -> Wish:
        """Return the wish; a new one only now and then, or when something cannot wait."""
        if self._wish is None:
            self._wish = self._first(now)
        due = now.at - self._decided_at >= self._config.replicas_interval_s - 1e-9
        if due or now.rates.jumped or self._must_wake(now):
            self._decided_at = now.at
            self._wish = self._decide(now)
        return self._wish

    def violations(self, now: Situation, replicas: Mapping[str, int]) -> tuple[Violation, ...]:
        """Return the promises that these replicas will not keep."""
        if self._wish is None or now.rates.upper <= 0:
            return ()
        sizer, demand = self._beliefs.sizer, now.demand(now.rates.middle)
        there = self._as_split(replicas, self._wish.needed)
        if there.total == 0:
            return ()
        if sizer.keeps(demand, there) and not self._wish.notes:
            return ()
        return sizer.violations(demand, there, self._wish.needed)

    def _first(self, now: Situation) -> Wish:
        """Begin with what is there: a planner that starts changes nothing by starting."""
        states = now.observation.pools
        return Wish(
            replicas={name: states[name].target for name in self._pools},
            needed=Split(),
            decided_by="as found",
        )

    def _decide(self, now: Situation) -> Wish:
        assert self._wish is not None
        if now.asleep and now.idle_s >= _RESTS_S:
            rest = self._rest(now)
            if rest.total:
                resting = Sizing(rest, "room for those who come back")
                return self._wished(now, resting, resting)
            if now.idle_s >= self._config.idle_s:
                none = {name: self._pools[name].limits.min_replicas for name in self._pools}
                return Wish(replicas=none, needed=Split(), decided_by="idle")
        if now.rates.upper <= 0 and now.asleep:
            return replace(self._wish, decided_by="idle for less than idle_s")
        if now.rates.unknown and any(self._wish.replicas.values()):
            return replace(self._wish, decided_by="too little was seen yet")
        sizer = self._beliefs.sizer
        calm = self._size(sizer, now, now.demand(self._cautious(now)))
        piled = now.demand(now.rates.upper, self._backlog(now, sizer))
        return self._wished(now, self._size(sizer, now, piled), calm)

    def _rest(self, now: Situation) -> Split:
        """Return who stays while nobody asks; a window without any request promises nothing."""
        if now.idle_s >= self._config.promise_window_s or not now.rates.busy:
            return Split()
        startup_s = max(self._startups.startup_s(name) for name in self._pools)
        demand = now.demand(now.rates.busy)
        return least_at_rest(self._beliefs.sizer, demand, startup_s, now.may_be_late)

    def _wished(self, now: Situation, wanted: Sizing, calm: Sizing) -> Wish:
        if self._beliefs.flippable:
            return self._of_total(now, wanted, calm)
        return self._of_roles(now, wanted, calm)

    def _cautious(self, now: Situation) -> float:
        """Return the rate at which fewer replicas must be enough: what may come, at least."""
        return max(now.rates.upper, now.rates.middle * _MARGIN)

    def _size(self, sizer: Sizer, now: Situation, demand: Demand) -> Sizing:
        if not self._startups.pending:  # else what is too much now is why they were asked for
            least = now.live.least_decode(self._beliefs.decode, now.shape, self._config.slo)
            demand = replace(demand, least_decode=least)
        roles = {spec.role for spec in self._pools.values()}
        if roles == {"both"}:
            return sizer.together(demand) or sizer.apart(demand).merged()
        few = MOST_TOGETHER
        together = sizer.together(demand, few) if self._beliefs.flippable else None
        apart = sizer.apart(demand)
        if together is not None and together.split.total < apart.split.total:
            return together
        return apart

    def _backlog(self, now: Situation, sizer: Sizer) -> float:
        """Return the milliseconds a second that it takes to work off what has piled up by then.

        What stands before a worker stays there: more than that worker's own time is not taken
        from those who come later.
        """
        ready = max(1, len(now.workers))
        each = sizer.mean_prompt_ms(now.shape)
        serving = [w for w in now.workers if w.role != "decode"]
        incoming = now.rates.now * each - 1e3 * len(serving)
        piled = now.piled_ms(sizer, max(1, len(serving)))
        if piled <= 0 and incoming <= 0:
            return 0.0
        wait_s = min(self._startups.startup_s(name) for name in self._pools)
        then = piled + max(0.0, incoming) * wait_s
        return min(then / self._config.drain_backlog_s, 1e3 * ready)

    def _of_total(self, now: Situation, wanted: Sizing, calm: Sizing) -> Wish:
        assert self._wish is not None
        current = sum(self._wish.replicas.values())
        total, why = self._patient("all", now, current, wanted.split.total, calm.split.total)
        before = self._wish.replicas
        found = share_total(total, wanted.split, before, self._room(now))
        return self._told(found, wanted, why or wanted.decided_by)

    def _of_roles(self, now: Situation, wanted: Sizing, calm: Sizing) -> Wish:
        assert self._wish is not None
        worth = self._beliefs.worth(now.shape)
        there = self._as_roles(self._wish.replicas, worth)
        counts, why = {}, wanted.decided_by
        for role in ROLES:
            current = getattr(there, role)
            need, calm_need = getattr(wanted.split, role), getattr(calm.split, role)
            counts[role], waits = self._patient(role, now, current, need, calm_need)
            why = waits or why
        found = share_by_role(Split(**counts), self._room(now), worth)
        return self._told(found, wanted, why)

    def _patient(
        self, key: str, now: Situation, current: int, wanted: int, calm: int
    ) -> tuple[int, str | None]:
        """Return how many there should be, and what keeps it from being fewer."""
        patience, levels = self._patience[key], self._levels[key]
        work_s = self._beliefs.sizer.work_s(now.shape)["both" if key == "all" else key]
        patience.note(now.at, calm)
        levels.note(now.at, calm, now.rates.now * work_s)
        if wanted > current:
            patience.grew(now.at)
            return wanted, None
        if now.rates.jumped or self._startups.pending:
            return current, "start-up: fewer only when those asked for are there"
        lowest = max(wanted, patience.lowest(now.at, current))
        if lowest >= current:
            return current, "a smaller need must last" if wanted < current else None
        if now.kept.broken(self._config.slo):
            return current, "too many answers are late already"
        known = levels.needed(lowest, work_s, now.rates.dispersion)
        if known >= current:
            return current, "this level has needed as many before"
        lowest = max(lowest, known)
        patience.shrank(now.at, current)
        return lowest, None

    def _told(self, found: Allocation, sizing: Sizing, why: str) -> Wish:
        return Wish(
            replicas=dict(found.replicas),
            needed=sizing.split,
            decided_by=found.limit or why,
            capacity=sizing.capacity,
            notes=sizing.notes,
        )

    def _room(self, now: Situation) -> Room:
        caps = {name: self._startups.cap(name, now.at) for name in self._pools}
        return Room(pools=self._pools, caps=caps, max_gpus=self._config.max_gpus)

    def _must_wake(self, now: Situation) -> bool:
        assert self._wish is not None
        return not sum(self._wish.replicas.values()) and not now.asleep

    def _as_roles(self, replicas: Mapping[str, int], worth: Mapping[str, float]) -> Split:
        counts = {role: 0.0 for role in ROLES}
        for name, count in replicas.items():
            counts[self._pools[name].role] += count * worth[name]
        return Split(**{role: round(count) for role, count in counts.items()})

    def _as_split(self, replicas: Mapping[str, int], needed: Split) -> Split:
        """Return the best that these replicas can be."""
        total = sum(replicas.values())
        if not self._beliefs.flippable:
            return self._as_roles(replicas, dict.fromkeys(replicas, 1.0))
        if total <= 1 or needed.both:
            return Split(both=total)
        apart = max(1, needed.prefill + needed.decode)
        prefill = min(max(round(total * needed.prefill / apart), 1), total - 1)
        return Split(prefill=prefill, decode=total - prefill)
