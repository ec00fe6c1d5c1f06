"""A few threads and two queues for what takes time: copies, disks, peers. Urgent work goes first.

How many blocks may wait is bounded; what does not fit is refused, and its caller never blocked.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

_log = logging.getLogger(__name__)
Work = Callable[[], None]


class Lane:
    """`limits` are blocks that may wait: urgent ones, and others."""

    def __init__(self, name: str, num_threads: int, limits: tuple[int, int]) -> None:
        self.limits = limits
        self._queues: tuple[deque[tuple[Work, int]], ...] = (deque(), deque())
        self._waiting = [0, 0]  # blocks
        self._busy = 0  # threads
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{i}", daemon=True)
            for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_waiting(self) -> tuple[int, int]:
        """Blocks of urgent work and of other work."""
        return self._waiting[0], self._waiting[1]

    def submit(self, work: Work, num_blocks: int, urgent: bool) -> bool:
        """Queue work; return False when too much waits already. It must not raise."""
        queue = 0 if urgent else 1
        with self._changed:
            over = self._waiting[queue] + num_blocks > self.limits[queue]
            if self._closed or (over and self._waiting[queue]):
                return False
            self._queues[queue].append((work, num_blocks))
            self._waiting[queue] += num_blocks
            self._changed.notify()
        return True

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing waits and nothing is being done."""
        with self._changed:
            return self._changed.wait_for(lambda: self._idle, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Do what waits, then end; False when a thread is still at it after that time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def _idle(self) -> bool:
        return not (self._busy or any(self._queues))

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except Exception:  # a bug in it: the others' work goes on
                _log.exception("work of %s failed", threading.current_thread().name)
            with self._changed:
                self._busy -= 1
                if self._idle:
                    self._changed.notify_all()

    def _next(self) -> Work | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or any(self._queues))
            for number, queue in enumerate(self._queues):
                if queue:
                    work, num_blocks = queue.popleft()
                    self._waiting[number] -= num_blocks
                    self._busy += 1
                    return work
            return None
