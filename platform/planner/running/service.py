"""The planner at work: looks, decides, acts, as often as its settings say."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.planner.observation import Observation
from stafette.platform.planner.plan import Explanation, Plan
from stafette.platform.planner.planner import Planner
from stafette.platform.planner.running.gathering import Room, Unseen
from stafette.platform.planner.running.pin_keeping import PinKeeper
from stafette.platform.planner.running.telling import tell_effects, tell_plans
from stafette.platform.planner.scaler import Effect, Scaler

_log = logging.getLogger(__name__)

_EFFECTS_KEPT = 64
_LEAST_PAUSE_S = 0.1  # between two looks, however much waits
_LONGEST_PIN_S = 30 * 86_400.0


class Gathers(Protocol):
    async def observe(self) -> Observation: ...

    def rooms(self) -> Mapping[str, Room]: ...


class PlannerService:
    """Used by one event loop."""

    def __init__(
        self,
        planner: Planner,
        gatherer: Gathers,
        scaler: Scaler,
        keeper: PinKeeper,
        clock: Callable[[], float],
    ) -> None:
        self.planner = planner
        self._gatherer = gatherer
        self._scaler = scaler
        self._keeper = keeper
        self._clock = clock
        self._effects: deque[tuple[float, Effect]] = deque(maxlen=_EFFECTS_KEPT)
        self._seen: Observation | None = None
        self._hurry = asyncio.Event()

    def hurry(self) -> None:
        """Look now."""
        self._hurry.set()

    def wake(self) -> None:
        """Look now, if nobody has been asked for yet: a request has no worker."""
        plans = self.planner.plans
        if not plans or not any(plans[-1].replicas.values()):
            self.hurry()

    async def run(self) -> None:
        """Go on until cancelled."""
        interval_s = self.planner.config.interval_s
        while True:
            await asyncio.sleep(_LEAST_PAUSE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, interval_s - _LEAST_PAUSE_S)):
                    await self._hurry.wait()
            self._hurry.clear()
            try:
                await self.look()
            except Exception:
                _log.exception("the planner ends, to be started again")
                raise

    async def look(self) -> Plan:
        """Make one plan, and begin to carry it out."""
        await self._keeper.look()
        plan = await self._plan()
        self._scaler.apply(plan)
        now = self._clock()
        self._effects.extend((now, effect) for effect in self._scaler.effects())
        return plan

    def overview(self, last: int) -> dict[str, Any]:
        if last < 1:
            raise InvalidSetting("last", last, "must be at least 1")
        now, planner = self._clock(), self.planner
        return {
            "mode": planner.config.mode,
            "slo": asdict(planner.config.slo),
            "pools": {name: self._tell_pool(name, now) for name in planner.pools},
            "plans": tell_plans(planner.plans, now, last),
            "effects": tell_effects(self._effects, now),
        }

    async def pin(self, pool: str, replicas: int, for_s: float) -> None:
        if not 0 < for_s <= _LONGEST_PIN_S:
            raise InvalidSetting("for_s", for_s, f"must be above 0, at most {_LONGEST_PIN_S:g}")
        await self._keeper.learned()
        self.planner.pins.pin(pool, replicas, self._clock() + for_s)
        self._pinned()

    async def unpin(self, pool: str) -> bool:
        """Return whether there was one."""
        await self._keeper.learned()
        found = self.planner.pins.unpin(pool)
        self._pinned()
        return found

    def _pinned(self) -> None:
        self._keeper.changed()
        self.hurry()

    async def _plan(self) -> Plan:
        try:
            self._seen = await self._gatherer.observe()
        except Unseen as error:
            return self._hold(str(error))
        for pool, room in self._gatherer.rooms().items():
            self.planner.beliefs.know(pool, room.kv_tokens, room.max_num_seqs)
        plan = self.planner.plan(self._seen)
        if plan.held is not None:
            _log.warning("held: %s", plan.held)
        return plan

    def _hold(self, why: str) -> Plan:
        """Leave all as it is: better no decision than one on half a picture."""
        _log.warning("held: %s", why)
        plans = self.planner.plans
        replicas = plans[-1].replicas if plans else {}
        explained = Explanation(decided_by="hold")
        plan = Plan(at=self._clock(), replicas=replicas, held=why, explanation=explained)
        plans.append(plan)
        return plan

    def _tell_pool(self, name: str, now: float) -> dict[str, Any]:
        spec, plans = self.planner.pools[name], self.planner.plans
        state = None if self._seen is None else self._seen.pools.get(name)
        pin = self.planner.pins.active(now).get(name)
        return {
            "role": spec.role,
            "min_replicas": spec.limits.min_replicas,
            "max_replicas": spec.limits.max_replicas,
            "target": None if state is None else state.target,
            "ready": None if state is None else state.ready,
            "planned": plans[-1].replicas.get(name) if plans else None,
            "pin": None
            if pin is None
            else {"replicas": pin.replicas, "left_s": round(pin.until - now, 1)},
        }
