"""The handle of a transfer: its state, its end, and when its destination may be used again."""

import ctypes
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from stafette.kvtransfer.errors import TransferCancelled, TransferError, TransferTimedOut

_log = logging.getLogger(__name__)
_ids = itertools.count(1)


def next_number() -> int:
    """Return a number that no transfer of this process has, nor any other caller."""
    return next(_ids)


class TransferState(Enum):
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Telemetry:
    transport: str
    num_ranges: int
    total_bytes: int
    moved_bytes: int
    seconds: float  # from the post to the end, or to now


class _Flag:
    """Does what threading.Event does, quicker: each waiter has a lock, which `set` releases."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: list[threading.Lock] = []

    def set(self) -> None:
        self._is_set = True
        with suppress(IndexError):  # two may set it at once: each waiter is released by one
            while True:
                self._waiters.pop().release()

    def wait(self, timeout_s: float | None) -> bool:
        if self._is_set:
            return True
        waiter = threading.Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        try:
            # Whoever sets it looks for waiters afterwards, and we look the other way round.
            if not self._is_set:
                waiter.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))
        finally:
            with suppress(ValueError):
                self._waiters.remove(waiter)
        return self._is_set


class Transfer:
    """One posted transfer. It ends by its deadline at the latest; nothing here waits for ever.

    The end that the caller sees and the end of writing are two things. A transfer that timed out or
    was cancelled may, for a moment, still be writing into its destination: until it is `settled`,
    those blocks belong to nobody else. A transfer that is done is settled.
    """

    def __init__(
        self, peer: str, num_ranges: int, total_bytes: int, timeout_s: float, doing: str = "reading"
    ) -> None:
        self.id = next_number()
        self.peer = peer
        self.transport = ""  # known when it has started
        self.total_bytes = total_bytes
        self.timeout_s = timeout_s
        self.posted = time.monotonic()
        self.deadline = self.posted + timeout_s
        self.stop = ctypes.c_int32(0)
        self._num_ranges = num_ranges
        self._doing = doing
        self._moved = 0
        self._ended_at: float | None = None
        self._state = TransferState.PENDING
        self._error: TransferError | None = None
        self._settled = False
        self._interrupt: Callable[[], None] | None = None
        self._lend: Callable[[float], None] | None = None
        self._on_settled: list[Callable[[Transfer], None]] = []
        self._lock = threading.Lock()
        self._ended = _Flag()
        self._quiet = _Flag()

    @property
    def error(self) -> TransferError | None:
        return self._error

    @property
    def settled(self) -> bool:
        """Whether nothing writes into the destination any more."""
        return self._settled

    def poll(self) -> TransferState:
        return self._state

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return True when done, False when still pending; raise the error that ended it."""
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        lend = self._lend
        if lend is not None and self._state is TransferState.PENDING:
            lend(until)
        left_s = None if timeout_s is None else until - time.monotonic()
        self._ended.wait(left_s)
        if self._error is not None:
            raise self._error
        return self._state is TransferState.DONE

    def wait_settled(self, timeout_s: float | None = None) -> bool:
        return self._quiet.wait(timeout_s)

    def cancel(self) -> None:
        """End it, unless it has ended. The destination is free when it is settled."""
        self._give_up(TransferState.CANCELLED, TransferCancelled(self.peer))

    def on_settled(self, call: Callable[["Transfer"], None]) -> None:
        """Call back once, in whichever thread settles it; at once when it is settled."""
        with self._lock:
            if not self._settled:
                self._on_settled.append(call)
                return
        self._tell(call)

    @property
    def seconds(self) -> float:
        """From the post to the end, or to now."""
        end = self._ended_at if self._ended_at is not None else time.monotonic()
        return end - self.posted

    def telemetry(self) -> Telemetry:
        moved, seconds = self._moved, self.seconds
        return Telemetry(self.transport, self._num_ranges, self.total_bytes, moved, seconds)

    # What follows is for the agent and its jobs.

    def expire(self) -> None:
        """The deadline has passed."""
        error = TransferTimedOut(self.peer, self._doing, self.timeout_s)
        self._give_up(TransferState.FAILED, error)

    def advance(self, nbytes: int) -> None:
        self._moved += nbytes

    def started(
        self,
        transport: str,
        interrupt: Callable[[], None],
        lend: Callable[[float], None] | None = None,
    ) -> None:
        """Somebody works on it now, who can be interrupted, and may use a thread that waits."""
        with self._lock:
            self.transport = transport
            self._interrupt = interrupt
            self._lend = lend
            given_up = self._state is not TransferState.PENDING
        if given_up:
            interrupt()

    def finish(self, error: TransferError | None = None) -> None:
        """Nothing is written any more; with no error, everything has arrived."""
        with self._lock:
            assert not self._settled, "a job finishes once"
            self._settled = True
            if self._state is TransferState.PENDING:
                failed = error is not None
                self._end(TransferState.FAILED if failed else TransferState.DONE, error)
            calls, self._on_settled = self._on_settled, []
            self._interrupt = self._lend = None  # they know the job, and that knows us
        for call in calls:
            self._tell(call)
        self._ended.set()
        self._quiet.set()

    def _tell(self, call: Callable[["Transfer"], None]) -> None:
        try:
            call(self)
        except Exception:  # the caller's code: it must not keep others waiting
            _log.exception("a callback of transfer %d with %s failed", self.id, self.peer)

    def _give_up(self, state: TransferState, error: TransferError) -> None:
        with self._lock:
            if self._state is not TransferState.PENDING:
                return
            self.stop.value = 1
            self._end(state, error)
            interrupt = self._interrupt
        self._ended.set()
        if interrupt is not None:
            interrupt()

    def _end(self, state: TransferState, error: TransferError | None) -> None:
        self._ended_at = time.monotonic()
        self._error = error
        self._state = state


class DoneTransfer(Transfer):
    """A small read that was over before its post returned: nothing can end it any more.

    Most of what a transfer is made of serves those who wait for it or stop it: it has none of that.
    """

    def __init__(
        self, peer: str, transport: str, total_bytes: int, posted: float, timeout_s: float
    ) -> None:
        self.id = next_number()
        self.peer = peer
        self.transport = transport
        self.total_bytes = self._moved = total_bytes
        self.timeout_s = timeout_s
        self.posted = posted
        self.deadline = posted + timeout_s
        self._num_ranges = 1
        self._ended_at = time.monotonic()
        self._state = TransferState.DONE
        self._error = None
        self._settled = True

    def wait(self, timeout_s: float | None = None) -> bool:
        return True

    def wait_settled(self, timeout_s: float | None = None) -> bool:
        return True

    def cancel(self) -> None:
        return

    def expire(self) -> None:
        return

    def on_settled(self, call: Callable[[Transfer], None]) -> None:
        self._tell(call)
