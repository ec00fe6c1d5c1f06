"""The threads of a link, and which of its jobs can be ended at once.

A job waits (in the queue, or for an answer of the peer) or is at work (its bytes are moving).
Whoever takes it out of these books is the one who finishes it: so it is finished once.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from stafette.kvtransfer.transport import ReadJob


class Workers:
    """Threads begin when jobs find none that is idle. `run` must end every job that it is given."""

    def __init__(self, name: str, max_threads: int, run: Callable[[ReadJob], None]) -> None:
        self._name = name
        self._max_threads = max_threads
        self._run = run
        self._queue: deque[ReadJob] = deque()
        self._waiting: set[ReadJob] = set()
        self._at_work: set[ReadJob] = set()
        self._threads: list[threading.Thread] = []
        self._num_idle = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def closed(self) -> bool:
        return self._closed

    def add(self, job: ReadJob) -> bool:
        """Run it soon; False when this is closed, and the job still the caller's."""
        with self._changed:
            if self._closed:
                return False
            self._waiting.add(job)
            self._queue.append(job)
            if self._num_idle < len(self._queue) and len(self._threads) < self._max_threads:
                self._start_thread()
            self._changed.notify()
        return True

    def begin(self, job: ReadJob) -> bool:
        """Say that it waits no more; False when it was taken away meanwhile."""
        with self._changed:
            if job not in self._waiting:
                return False
            self._waiting.remove(job)
            self._at_work.add(job)
            return True

    def pause(self, job: ReadJob) -> None:
        """Say that it waits again: none of its bytes moves any more."""
        with self._changed:
            self._at_work.remove(job)
            self._waiting.add(job)

    def take(self, job: ReadJob, waiting_only: bool = False) -> bool:
        """Take a job out of the books; True when it is the caller's to finish."""
        with self._changed:
            known = job in self._waiting or (not waiting_only and job in self._at_work)
            self._waiting.discard(job)
            if known:
                self._at_work.discard(job)
            return known

    def close(self) -> list[ReadJob]:
        """Tell what is at work to stop; return the jobs that waited, now the caller's."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = list(self._waiting), set()
            self._queue.clear()
            for job in self._at_work:
                job.stop.value = 1
            self._changed.notify_all()
        return waiting

    def join(self, timeout_s: float) -> None:
        """Wait a moment for the threads; one that asks the peer something ends with its call."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _start_thread(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._num_idle += 1
                self._changed.wait_for(lambda: self._queue or self._closed)
                self._num_idle -= 1
                if self._closed:
                    return
                job = self._queue.popleft()
            self._run(job)
