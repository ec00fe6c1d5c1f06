"""Waits inside of gloo, so that no thread that matters does.

When a connection breaks in the middle of a message, the gloo of torch 2.13 forgets to wake whoever
waits for that message: 1 of 4 times when a peer was killed at random. Then only the wait's own
timeout ends it. So a thread waits that can be left behind: gloo writes into its buffer at most.
"""

import logging
import threading
import time
from collections import deque
from datetime import timedelta
from typing import Any

from stafette.kvtransfer.transports.two_sided.pipe import Pending

_log = logging.getLogger(__name__)

_LONGEST_S = 30.0  # for one part; a thread that was left behind ends after it
_GRACE_S = 0.25  # for a part that is under way from a peer that lives


class Waiter:
    """One thread for one process group."""

    def __init__(self, group: Any) -> None:
        self._group = group  # lives as long as somebody is inside of it
        self._due: deque[_Awaited] = deque()
        self._ended = ""  # why nobody waits any more
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="reading-gloo", daemon=True)
        self._thread.start()

    def expect(self, work: Any, buffer: Any) -> Pending:
        awaited = _Awaited(self, work, buffer)
        with self._changed:
            self._due.append(awaited)
            self._changed.notify_all()
        return awaited

    def end(self, reason: str) -> None:
        """Wake whoever waits for something expected, with a ConnectionError."""
        with self._changed:
            self._ended = self._ended or reason
            self._changed.notify_all()

    def close(self) -> bool:
        """Return whether the thread has ended; else it does so with its wait."""
        self.end("the pipe was closed")
        with self._changed:
            self._due.clear()
        self._thread.join(_GRACE_S)
        return not self._thread.is_alive()

    def await_end(self, awaited: "_Awaited", deadline: float) -> None:
        with self._changed:
            while not awaited.over:
                if self._ended:
                    raise ConnectionError(self._ended)
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError
                self._changed.wait(left_s)
        if awaited.error is not None:
            raise ConnectionError(first_line(awaited.error)) from awaited.error

    def _run(self) -> None:
        while (awaited := self._next()) is not None:
            error: Exception | None = None
            try:
                awaited.work.wait(timedelta(seconds=_LONGEST_S))
            except RuntimeError as broke:
                error = broke
            with self._changed:
                awaited.over, awaited.error = True, error
                self._changed.notify_all()
            del awaited
        self._group = None

    def _next(self) -> "_Awaited | None":
        with self._changed:
            while not self._due and not self._ended:
                self._changed.wait()
            if self._ended:
                return None
            return self._due.popleft()


class _Awaited(Pending):
    __slots__ = ("_waiter", "work", "_buffer", "over", "error")  # the work goes before its buffer

    def __init__(self, waiter: Waiter, work: Any, buffer: Any) -> None:
        self._waiter = waiter
        self.work = work
        self._buffer = buffer
        self.over = False
        self.error: Exception | None = None

    def wait(self, deadline: float) -> None:
        self._waiter.await_end(self, deadline)


def first_line(error: Exception) -> str:
    """Return what gloo says, without the place in its source and its advice."""
    shown = str(error).partition("\n")[0]
    return shown.rpartition("] ")[2].partition(". This is")[0][:200]
