"""Reads whose jobs have ended, but which still may write: nobody gets their destination yet.

They are over when NIXL says so, or when their agent is destroyed. That happens where their link was
closed, the peer being lost, and NIXL has not noticed within a while. It is not done as long as the
peer only stands still: it costs other reads a new agent, and, where UCX goes by TCP, the peer its
life when it goes on.
"""

import threading
import time
from dataclasses import dataclass

from stafette.kvtransfer.errors import TransferError
from stafette.kvtransfer.transport import ReadJob
from stafette.kvtransfer.transports.one_sided.engines import Engine, Engines
from stafette.kvtransfer.transports.one_sided.nixl_agent import Flight

_SHORTEST_S, _LONGEST_S = 0.001, 0.02  # between two looks


@dataclass(slots=True, eq=False)
class Orphan:
    owner: object  # the link that began it
    engine: Engine
    flights: list[Flight]
    job: ReadJob
    error: TransferError
    give_up_at: float | None = None  # when its engine is retired for it

    @property
    def lasts(self) -> bool:
        """Whether nothing is left that could end it but this process."""
        return self.engine.destroyed and not self.engine.gone

    def over(self) -> bool:
        if self.engine.destroyed:
            return self.engine.gone
        self.flights = [flight for flight in self.flights if not flight.landed()]
        return not self.flights


class Orphans:
    """Looks after them in a thread, which lives as long as there are any."""

    def __init__(self, engines: Engines, grace_s: float) -> None:
        self._engines = engines
        self._grace_s = grace_s
        self._all: list[Orphan] = []
        self._closing = False
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    def adopt(self, orphan: Orphan, abandoned: bool) -> None:
        """Take over the end of a job; `abandoned` when its link is closed already."""
        if abandoned:
            orphan.give_up_at = time.monotonic() + self._grace_s
        with self._changed:
            self._all.append(orphan)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nixl-orphans", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def abandon(self, owner: object) -> None:
        """A link was closed: its peer is lost."""
        with self._changed:
            for orphan in self._all:
                if orphan.owner is owner and orphan.give_up_at is None:
                    orphan.give_up_at = time.monotonic() + self._grace_s

    def close(self, timeout_s: float) -> bool:
        """Give up all of them now; return whether they are over."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return thread is None or not thread.is_alive()

    def _run(self) -> None:
        pause_s = _SHORTEST_S
        while self._look():
            with self._changed:
                self._changed.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_S)

    def _look(self) -> bool:
        """End what is over; return whether to look again."""
        with self._changed:
            orphans, closing = list(self._all), self._closing
        now = time.monotonic()
        for orphan in orphans:
            due = closing or (orphan.give_up_at is not None and now >= orphan.give_up_at)
            if due and not self._engines.look(orphan.over):
                self._engines.retire(orphan.engine)
        over = [orphan for orphan in orphans if self._engines.look(orphan.over)]
        with self._changed:
            self._all = [orphan for orphan in self._all if orphan not in over]
            more = not all(orphan.lasts for orphan in self._all)
            if not more:
                self._thread = None
        for orphan in over:
            orphan.job.finish(orphan.error)
        return more
