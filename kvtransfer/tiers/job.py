"""The handle of what a store was asked to do with blocks: what became of each, and when it is over.

A block waits, is moved, and then its outcome is final. To cancel, or to run out of time, ends what
waits, at once; what is being moved at that moment is moved to its end. So when a job is done,
nothing touches the caller's slots any more.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum

_log = logging.getLogger(__name__)


class Outcome(Enum):
    WAITING = "waiting"
    MOVING = "moving"
    DONE = "done"
    PRESENT = "present"  # was there already: nothing had to be moved
    MISSING = "missing"  # it is on no tier
    DROPPED = "dropped"  # no room: in the queue, or on the tier
    CORRUPT = "corrupt"  # what was read is not what was written
    FAILED = "failed"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"

    @property
    def good(self) -> bool:
        return self in (Outcome.DONE, Outcome.PRESENT)


_OPEN = (Outcome.WAITING, Outcome.MOVING)


class BlockJob:
    """May be used by any thread. `deadline` is of time.monotonic."""

    def __init__(
        self, hashes: Sequence[bytes], timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.hashes = tuple(hashes)
        self.timeout_s = timeout_s
        self.deadline = clock() + timeout_s
        self._outcomes = [Outcome.WAITING] * len(self.hashes)
        self._open = len(self.hashes)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._on_done: list[Callable[[BlockJob], None]] = []
        if not self.hashes:
            self._over.set()

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        with self._lock:
            return tuple(self._outcomes)

    @property
    def done(self) -> bool:
        """Whether every outcome is final, and the caller's slots are free to use."""
        return self._over.is_set()

    @property
    def num_ready(self) -> int:
        """How many of the first blocks are where they were wanted, without a gap."""
        outcomes = self.outcomes
        return next((i for i, o in enumerate(outcomes) if not o.good), len(outcomes))

    def counts(self) -> Counter[Outcome]:
        """Return how many blocks have which outcome: the progress, while it is not done."""
        return Counter(self.outcomes)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return whether it is done. Without a limit of its own, its deadline is one."""
        return self._over.wait(timeout_s)

    def cancel(self) -> None:
        """End what waits."""
        self._end_waiting(Outcome.CANCELLED)

    def on_done(self, call: Callable[["BlockJob"], None]) -> None:
        """Call back once, in whichever thread ends it; at once when it is done."""
        with self._lock:
            if self._open:
                self._on_done.append(call)
                return
        self._tell(call)

    # What follows is for the store.

    def waits(self, index: int) -> bool:
        return self._outcomes[index] is Outcome.WAITING

    def claim(self, indices: Sequence[int]) -> list[int]:
        """Return those that still wait; they are being moved from now on."""
        with self._lock:
            mine = [i for i in indices if self._outcomes[i] is Outcome.WAITING]
            for i in mine:
                self._outcomes[i] = Outcome.MOVING
        return mine

    def settle(self, indices: Sequence[int], outcome: Outcome) -> int:
        """Make an outcome final, where it is not yet; return of how many blocks."""
        with self._lock:
            mine = [i for i in indices if self._outcomes[i] in _OPEN]
            self._close(mine, outcome)
            calls = self._take_calls()
        self._finish(calls)
        return len(mine)

    def expire(self) -> None:
        self._end_waiting(Outcome.TIMED_OUT)

    def _end_waiting(self, outcome: Outcome) -> None:
        with self._lock:
            mine = [i for i, found in enumerate(self._outcomes) if found is Outcome.WAITING]
            self._close(mine, outcome)
            calls = self._take_calls()
        self._finish(calls)

    def _close(self, indices: Sequence[int], outcome: Outcome) -> None:
        for i in indices:
            self._outcomes[i] = outcome
        self._open -= len(indices)

    def _take_calls(self) -> list[Callable[["BlockJob"], None]] | None:
        if self._open or self._over.is_set():
            return None
        calls, self._on_done = self._on_done, []
        self._over.set()
        return calls

    def _finish(self, calls: list[Callable[["BlockJob"], None]] | None) -> None:
        for call in calls or ():
            self._tell(call)

    def _tell(self, call: Callable[["BlockJob"], None]) -> None:
        try:
            call(self)
        except Exception:  # the caller's code: it must not keep others waiting
            _log.exception("a callback of a job of %d blocks failed", len(self.hashes))
