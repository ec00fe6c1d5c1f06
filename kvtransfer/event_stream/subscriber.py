"""Follows the KV events of many workers, and hands them to one handler, each worker's in order."""

import logging
import socket as sockets
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, replace
from functools import partial
from selectors import EVENT_READ, DefaultSelector
from threading import Lock, Thread
from types import TracebackType

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.event_stream import wire
from stafette.kvtransfer.event_stream.delivery import Delivery
from stafette.kvtransfer.event_stream.dialects import DialectName, dialect_of
from stafette.kvtransfer.event_stream.follower import Counters, EventHandler, Follower
from stafette.kvtransfer.event_stream.link import Link, Phase, SubscriberConfig, Surroundings

logger = logging.getLogger(__name__)

_MAX_SOCKETS = 65_535  # two a worker at most, and libzmq's own limit
_CLOSE_TIMEOUT_S = 10.0
_WAKE_BYTES = 4_096


class EventSubscriber:
    """Calls the handler from a thread of its own, which does nothing else: a slow handler only
    delays the events, until its queue is full and the rest is made good by a replay.

    For `inproc://` addresses, `context` is the one that the publisher uses as well.
    """

    def __init__(
        self,
        handler: EventHandler,
        config: SubscriberConfig | None = None,
        context: wire.Context | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        config = config or SubscriberConfig()
        self._owns_context = context is None
        self._context = context or _make_context()
        self._delivery = self._deliver_to(handler, config.queue_batches)
        self._selector = DefaultSelector()
        self._around = Surroundings(
            self._context, self._selector, config, clock, self._delivery.has_room
        )
        self._max_replays = config.max_replays
        self._tick_s = min(0.25, config.lost_after_s / 4, config.replay_timeout_s / 4)
        self._links: dict[str, Link] = {}  # the thread's
        self._followed: dict[str, Follower] = {}  # as told by the callers, who may be ahead of it
        self._changing = Lock()
        self._ready: dict[Link, None] = {}  # may have messages; in their order
        self._waiting: dict[Link, None] = {}  # for a replay; in their order
        self._replaying: set[Link] = set()
        self._past = Counters()  # of workers that are followed no more
        self._commands: deque[Callable[[], None]] = deque()
        self._closed = self._failed = False
        self._wake, self._woken = sockets.socketpair()
        self._wake.setblocking(False)
        self._selector.register(self._woken, EVENT_READ)
        self._thread = Thread(target=self._run, name="kv-event-subscriber", daemon=True)
        self._thread.start()

    def _deliver_to(self, handler: EventHandler, capacity: int) -> Delivery:
        return Delivery(
            handler,
            capacity,
            lambda worker_id: self._command(partial(self._go_on, worker_id)),
            lambda worker_id: self._command(partial(self._fail, worker_id)),
        )

    def __enter__(self) -> "EventSubscriber":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add_worker(
        self,
        worker_id: str,
        address: str,
        replay_address: str | None = None,
        dialect: DialectName = "stafette",
    ) -> None:
        """Follow a worker, which need not be there yet; one of the same name is replaced.

        Stock vLLM workers may have no replay address. Each of their data-parallel ranks has an
        address of its own: add each as a worker.
        """
        if self._closed or self._failed:
            raise InvalidValue("worker_id", worker_id, "comes too late: this subscriber is closed")
        reads = dialect_of(dialect, worker_id)
        if replay_address is None and reads.snapshots:
            raise InvalidValue("replay_address", None, f"a {dialect} worker has one: give it")
        follower = Follower(
            worker_id, self._delivery, Counters(), reads.snapshots, replay_address is not None
        )
        link = Link(follower, reads, address, replay_address, self._around)
        with self._changing:
            self._followed[worker_id] = follower
            self._command(partial(self._add, link))

    def remove_worker(self, worker_id: str) -> None:
        """Follow the worker no more; `on_lost` is the last that the handler hears of it."""
        with self._changing:
            self._followed.pop(worker_id, None)
            self._command(partial(self._remove, worker_id))

    @property
    def workers(self) -> list[str]:
        return list(self._followed)

    def counters(self, worker_id: str | None = None) -> Counters:
        """Return the counts of one worker that is followed, or of all there have been."""
        if worker_id is None:
            links = list(self._links.values())
            return _sum([self._past, *(link.follower.counters for link in links)])
        follower = self._followed.get(worker_id)
        if follower is None:
            known = ", ".join(sorted(self._followed)) or "none"
            raise InvalidValue("worker_id", worker_id, f"is not followed; those are: {known}")
        return replace(follower.counters)

    def close(self) -> None:
        """Stop; the handler is called no more. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._rouse()
        if not self._delivery.close(_CLOSE_TIMEOUT_S):
            logger.error("the events' handler still runs after %g s", _CLOSE_TIMEOUT_S)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        self._rouse()

    def _rouse(self) -> None:
        # So many bytes may wait to be read that one more makes no difference; or the end was told.
        with suppress(OSError):
            self._wake.send(b"\0")

    def _run(self) -> None:
        try:
            self._follow()
        except Exception:  # our bug: nobody must go on with what is followed no more
            self._failed = True
            logger.exception("KV events are followed no more")
            for link in self._links.values():
                link.follower.lose()
        self._release()

    def _follow(self) -> None:
        next_check = self._clock()
        while not self._closed:
            self._run_commands()
            self._select()
            for link in list(self._ready):
                self._pump(link)
            self._begin_replays()
            if self._clock() >= next_check:
                self._check()
                next_check = self._clock() + self._tick_s

    def _run_commands(self) -> None:
        while self._commands:
            self._commands.popleft()()

    def _select(self) -> None:
        """Find who has messages. A socket's descriptor tells once, so links stay ready until they
        are read empty."""
        for key, _ in self._selector.select(0 if self._ready else self._tick_s):
            if key.data is None:
                self._woken.recv(_WAKE_BYTES)
            else:
                self._ready[key.data] = None

    def _pump(self, link: Link) -> None:
        if not link.pump():
            del self._ready[link]
        if link.phase is Phase.WAITING:
            self._waiting[link] = None
        if link.phase is not Phase.REPLAYING:
            self._replaying.discard(link)

    def _begin_replays(self) -> None:
        while self._waiting and len(self._replaying) < self._max_replays:
            link = next(iter(self._waiting))
            del self._waiting[link]
            link.begin_replay()
            self._replaying.add(link)
            self._ready[link] = None

    def _check(self) -> None:
        for link in self._links.values():
            if link.check():
                self._ready[link] = None

    def _add(self, link: Link) -> None:
        self._remove(link.follower.worker_id)
        self._links[link.follower.worker_id] = link
        link.start()
        self._ready[link] = None

    def _remove(self, worker_id: str) -> None:
        link = self._links.pop(worker_id, None)
        if link is None:
            return
        self._ready.pop(link, None)
        self._waiting.pop(link, None)
        self._replaying.discard(link)
        link.close()
        link.follower.lose()
        self._past = _sum([self._past, link.follower.counters])

    def _go_on(self, worker_id: str) -> None:
        """There is room again for what a replay brings."""
        link = self._links.get(worker_id)
        if link is not None:
            self._ready[link] = None

    def _fail(self, worker_id: str) -> None:
        link = self._links.get(worker_id)
        if link is not None:
            link.follower.fail()

    def _release(self) -> None:
        """Close everything, on the thread that used it."""
        self._run_commands()
        for link in self._links.values():
            link.close()
        self._selector.close()
        self._wake.close()
        self._woken.close()
        if self._owns_context:
            self._context.destroy(linger=0)


def _make_context() -> wire.Context:
    context = wire.Context()
    context.max_sockets = _MAX_SOCKETS
    return context


def _sum(parts: Sequence[Counters]) -> Counters:
    return Counters(*map(sum, zip(*map(astuple, parts), strict=True)))
