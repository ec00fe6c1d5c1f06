"""Hands events to their handler in a thread of its own, so that who reads the net never waits.

It must not: a ZeroMQ socket whose queue is full while its connection is made anew ends the whole
process (libzmq issue 3937).
"""

import logging
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from threading import Condition, Thread, current_thread

from stafette.kvtransfer.event_stream.follower import EventHandler
from stafette.kvtransfer.events import EventBatch

logger = logging.getLogger(__name__)

Told = Callable[[str], None]  # gets the worker's name


class Delivery(EventHandler):
    """A handler that keeps what it is told, in order, and never waits itself.

    Who finds no room for a batch, by `has_room`, is told by `on_room` when there is some again.
    After a call that failed, the worker's batches are left out until it is reset, which `on_failed`
    is to bring about.
    """

    def __init__(
        self, handler: EventHandler, capacity: int, on_room: Told, on_failed: Told
    ) -> None:
        self._handler = handler
        self._capacity = capacity  # batches of each worker
        self._on_room, self._on_failed = on_room, on_failed
        self._calls: deque[tuple[str, Callable[[], None], bool]] = deque()  # True: of a batch
        self._waiting: Counter[str] = Counter()
        self._full: set[str] = set()  # workers for whom there was no room
        self._broken: set[str] = set()
        self._closed = False
        self._changed = Condition()
        self.thread = Thread(target=self._run, name="kv-event-handler", daemon=True)
        self.thread.start()

    def has_room(self, worker_id: str) -> bool:
        with self._changed:
            if self._waiting[worker_id] < self._capacity:
                return True
            self._full.add(worker_id)
            return False

    def on_batch(self, batch: EventBatch) -> None:
        self._put(batch.worker_id, partial(self._handler.on_batch, batch), True)

    def on_reset(self, worker_id: str) -> None:
        self._put(worker_id, partial(self._handler.on_reset, worker_id), False)

    def on_lost(self, worker_id: str) -> None:
        self._put(worker_id, partial(self._handler.on_lost, worker_id), False)

    def close(self, timeout_s: float) -> bool:
        """Call the handler no more; return whether it has returned in time."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self.thread is not current_thread():
            self.thread.join(timeout_s)
        return not self.thread.is_alive() or self.thread is current_thread()

    def _put(self, worker_id: str, call: Callable[[], None], of_batch: bool) -> None:
        with self._changed:
            self._calls.append((worker_id, call, of_batch))
            self._waiting[worker_id] += of_batch
            self._changed.notify()

    def _run(self) -> None:
        while (found := self._next()) is not None:
            worker_id, call, of_batch = found
            if not (of_batch and worker_id in self._broken):
                self._broken.discard(worker_id)
                self._call(worker_id, call)
            if of_batch:
                self._make_room(worker_id)

    def _next(self) -> tuple[str, Callable[[], None], bool] | None:
        with self._changed:
            while not self._calls and not self._closed:
                self._changed.wait()
            return None if self._closed else self._calls.popleft()

    def _call(self, worker_id: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            logger.exception("the handler of %s's events failed", worker_id)
            self._broken.add(worker_id)
            self._on_failed(worker_id)

    def _make_room(self, worker_id: str) -> None:
        with self._changed:
            self._waiting[worker_id] -= 1
            waiting = self._waiting[worker_id]
            if not waiting:
                del self._waiting[worker_id]
            told = worker_id in self._full and waiting <= self._capacity // 2
            if told:
                self._full.discard(worker_id)
        if told:
            self._on_room(worker_id)
