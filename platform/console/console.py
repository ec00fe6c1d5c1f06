"""What the page is told: the fleet as it is, and its last minutes, as small as it can be said.

Each look at the fleet has a version. A page says which one it has and gets what is newer; a page
that has none, or that of another frontend's life, gets all.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from stafette.platform.console import decisions
from stafette.platform.console.history import History, Moment
from stafette.platform.console.planning import PlannerLog, Promise, TellsPlans
from stafette.platform.console.table import WorkerTable
from stafette.platform.frontend.generator import Generator, Status
from stafette.platform.frontend.metrics.book import Metrics
from stafette.platform.frontend.metrics.recent import percentile

_log = logging.getLogger(__name__)

STEP_S = 2.0  # between two moments of the history
KEPT = 300  # moments: ten minutes
WINDOW_S = 20.0  # over which latencies are taken
_LOOK_S = 0.8  # in which all readers are told the same
_MANY = 250  # workers, from which on a page asks half as often


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom the console shows: a frontend, and what makes its tokens."""

    name: str  # of the model
    generator: Generator
    metrics: Metrics
    in_flight: Callable[[], int]


class Console:
    """Used by one event loop. `clock` must be that of the frontend's measurements."""

    def __init__(self, subject: Subject, clock: Callable[[], float] = time.perf_counter) -> None:
        self._subject = subject
        self._clock = clock
        self._began = clock()
        self._life = secrets.token_hex(4)
        self._version = 0
        self._table = WorkerTable()
        self._history = History(KEPT)
        self._sums = _Sums.of(subject.metrics, subject.generator.status())
        self._answered_at = self._began
        self._planner: PlannerLog | None = None
        self._decisions: list[dict[str, Any]] = []
        self._decisions_version = 0
        self._looked_at = self._began - _LOOK_S
        self._keeping: asyncio.Task[None] | None = None

    def show_planner(self, planner: TellsPlans) -> None:
        """Show what this one plans, and hold requests against what it promises."""
        self._planner = PlannerLog(planner, KEPT)

    @property
    def promise(self) -> Promise | None:
        return None if self._planner is None else self._planner.promise

    def start(self) -> None:
        """Keep a history from now on, whether somebody looks or not."""
        self._keeping = asyncio.create_task(self._keep(), name="console")

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeping

    def data(self, cursor: str) -> dict[str, Any]:
        """Return what a page lacks that has got as far as `cursor`; empty: it has nothing."""
        known = self._read(cursor)
        if self._clock() - self._looked_at >= _LOOK_S:
            self._look()
        subject = self._subject
        shown: dict[str, Any] = {
            "cursor": f"{self._life}.{self._version}",
            "again_s": 2.0 if len(self._table) >= _MANY else 1.0,
            "now": self._now(),
            "in_flight": subject.in_flight(),
            "history": self._history.since(known),
            "workers": self._table.since(known),
            "promise": None if self.promise is None else asdict(self.promise),
        }
        if not known:
            shown |= {"model": subject.name, "window_s": WINDOW_S}
        if self._planner is not None:
            shown["planner"] = self._planner.since(known)
        if self._decisions_version > known or not known:
            shown["decisions"] = self._decisions
        return shown

    async def step(self) -> None:
        """Add a moment to the history, and to the planner's."""
        self.remember()
        if self._planner is not None:
            await self._planner.look(self._version, self._now())

    def remember(self) -> None:
        subject, now = self._subject, self._clock()
        status = subject.generator.status()
        sums = _Sums.of(subject.metrics, status)
        recent = subject.metrics.recent
        first = recent.first_tokens_since(now - WINDOW_S)
        steps = [itl for _, itl in recent.answered_since(now - WINDOW_S) if itl is not None]
        answered, kept = self._kept(now)
        before, self._sums = self._sums, sums
        self._version += 1
        moment = Moment(
            at=self._now(),
            ttft_p50=_ms(percentile(first, 0.5)),
            ttft_p95=_ms(percentile(first, 0.95)),
            itl_p50=_ms(percentile(steps, 0.5)),
            itl_p95=_ms(percentile(steps, 0.95)),
            in_flight=subject.in_flight(),
            running=status.num_running,
            waiting=status.num_waiting,
            kv=round(status.kv_cache_usage, 4),
            prompt_tokens=sums.prompt_tokens - before.prompt_tokens,
            output_tokens=sums.output_tokens - before.output_tokens,
            answered=answered,
            kept=kept,
            queries=sums.queries - before.queries,
            hits=sums.hits - before.hits,
            moved=sums.moved - before.moved,
        )
        self._history.add(self._version, moment)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(STEP_S)
            try:
                await self.step()
            except Exception:  # of whoever was asked: the next moment may be told again
                _log.exception("a moment of the console's history is missing")

    def _look(self) -> None:
        generator, now = self._subject.generator, self._now()
        self._looked_at = self._clock()
        self._version += 1
        self._table.look(generator.workers(), self._version, now)
        told = generator.decisions(f"last={decisions.SHOWN}")["decisions"]
        shown = decisions.short(told, now)
        if shown != self._decisions:
            self._decisions, self._decisions_version = shown, self._version

    def _kept(self, now: float) -> tuple[int, int]:
        """Return how many requests were answered since the last moment, and how many in time."""
        rows = self._subject.metrics.recent.answered_since(self._answered_at)
        self._answered_at = now
        promise = self.promise
        if promise is None:
            return len(rows), 0
        ttft_s, itl_s = promise.ttft_ms / 1e3, promise.itl_ms / 1e3
        return len(rows), sum(ttft <= ttft_s and (itl or 0.0) <= itl_s for ttft, itl in rows)

    def _read(self, cursor: str) -> int:
        """Return the version that a cursor stands for; 0 of one that is not of this life."""
        life, _, version = cursor.partition(".")
        if life != self._life or not version.isdecimal() or len(version) > 18:
            return 0
        return min(int(version), self._version)

    def _now(self) -> float:
        return round(self._clock() - self._began, 1)


@dataclass(frozen=True, slots=True)
class _Sums:
    prompt_tokens: int
    output_tokens: int
    queries: int
    hits: int
    moved: int

    @classmethod
    def of(cls, metrics: Metrics, status: Status) -> "_Sums":
        return cls(
            metrics.prompt_tokens,
            metrics.generation_tokens,
            status.prefix_queries,
            status.prefix_hits,
            status.pulled_tokens,
        )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 1)
