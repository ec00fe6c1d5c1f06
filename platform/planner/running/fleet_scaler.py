"""Carries plans out on a running fleet: counts by Ray Serve, roles and farewells by the workers.

A pool that shrinks loses the workers that the plan names: each is told to retire, and only when it
has gone does the number go down. Then there is none for Serve to choose: its replacement is the
newest, and is what the lower number cancels.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stafette.platform.planner.plan import Plan, RoleFlip
from stafette.platform.planner.running.gathering import Sizes, Unseen, pool_of
from stafette.platform.planner.scaler import Effect, Scaler
from stafette.platform.serving.links import Links
from stafette.workers.errors import EngineError

_log = logging.getLogger(__name__)

_ANSWER_S = 5.0  # for a worker to answer
_NOTICED_S = 30.0  # until Serve has seen that a worker is empty, and has stopped it


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done about one pool now."""

    replicas: int | None = None  # None: the number stays
    retire: Sequence[str] = ()
    resume: Sequence[str] = ()


@dataclass(slots=True)
class Farewells:
    """The workers of one pool that were told to retire, each with when it is late."""

    until: dict[str, float] = field(default_factory=dict)

    def step(
        self, wanted: int, target: int, release: Sequence[str], present: Sequence[str], now: float
    ) -> Step:
        """Return the next step to `wanted` replicas, where Serve was last asked for `target`."""
        self.until = {name: end for name, end in self.until.items() if name in present}
        if wanted >= target:
            taken_back, self.until = tuple(self.until), {}
            return Step(wanted if wanted > target else None, resume=taken_back)
        staying = [name for name in release if name in present and wanted]
        slow = [name for name in staying if self.until.get(name, now) >= now]
        lower = wanted + len(slow)
        fresh = tuple(name for name in slow if name not in self.until)
        return Step(lower if lower < target else None, retire=fresh)

    def told(self, name: str, until: float) -> None:
        self.until[name] = until


class FleetScaler(Scaler):
    """Used by one event loop. `drain_s`: how long the workers of each pool may take to leave."""

    def __init__(
        self,
        sizes: Sizes,
        workers: Links,
        drain_s: Mapping[str, float],
        clock: Callable[[], float],
    ) -> None:
        self._sizes = sizes
        self._workers = workers
        self._drain_s = drain_s
        self._clock = clock
        self._farewells = {pool: Farewells() for pool in drain_s}
        self._under_way: dict[str, asyncio.Task[None]] = {}  # by subject: a pool or a worker
        self._effects: list[Effect] = []
        self._told_last: dict[str, Effect] = {}  # by subject

    def apply(self, plan: Plan) -> None:
        if plan.held is not None:
            return
        for flip in plan.flips:
            self._begin(flip.worker, self._flip(flip))
        for pool, wanted in plan.replicas.items():
            release = [name for name in plan.release if pool_of(name) == pool]
            self._begin(pool, self._resize(pool, wanted, release))

    def effects(self) -> Sequence[Effect]:
        told, self._effects = self._effects, []
        return told

    def leaving(self) -> Collection[str]:
        return {name for each in self._farewells.values() for name in each.until}

    async def close(self) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, subject: str, work: Coroutine[Any, Any, None]) -> None:
        """Do one thing at a time to each: what a plan wants, the next plan wants again."""
        if subject in self._under_way:
            work.close()
            return
        task = asyncio.create_task(work, name=f"scale-{subject}")
        self._under_way[subject] = task
        task.add_done_callback(lambda _: self._under_way.pop(subject, None))

    async def _flip(self, flip: RoleFlip) -> None:
        await self._ask(flip.worker, "set_role", flip.role, f"role {flip.role}")

    async def _resize(self, pool: str, wanted: int, release: Sequence[str]) -> None:
        wish = f"{wanted} replicas"
        try:
            target = (await self._sizes.targets())[pool]
        except Unseen as error:
            self._note(Effect(pool, wish, "failed", str(error)))
            return
        present = [name for name in self._workers.clients if pool_of(name) == pool]
        step = self._farewells[pool].step(wanted, target, release, present, self._clock())
        for name in step.resume:
            await self._ask(name, "drain", False, "resume")
        for name in step.retire:
            if await self._ask(name, "retire", None, "drain"):
                until = self._clock() + self._drain_s[pool] + _NOTICED_S
                self._farewells[pool].told(name, until)
        if step.replicas is not None:
            await self._set(pool, step.replicas, wish)

    async def _set(self, pool: str, replicas: int, wish: str) -> None:
        try:
            await self._sizes.resize(pool, replicas)
        except (Unseen, ValueError) as error:
            self._note(Effect(pool, wish, "failed", str(error)))
        else:
            self._note(Effect(pool, f"{replicas} replicas", "asked"))

    async def _ask(self, name: str, operation: str, payload: object, wish: str) -> bool:
        try:
            await self._workers.client(name).ask(operation, payload, _ANSWER_S)
        except EngineError as error:
            self._note(Effect(name, wish, "failed", str(error)))
            return False
        self._note(Effect(name, wish, "done"))
        return True

    def _note(self, effect: Effect) -> None:
        if effect.state == "failed" and self._told_last.get(effect.subject) == effect:
            return  # each plan tries again: that it fails as before is no news
        self._told_last[effect.subject] = effect
        level = logging.WARNING if effect.state == "failed" else logging.INFO
        words = (effect.subject, effect.wish, effect.state, effect.reason)
        _log.log(level, "%s: %s: %s %s", *words)
        self._effects.append(effect)
