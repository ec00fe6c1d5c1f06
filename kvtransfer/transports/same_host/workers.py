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
        """Run it soon; False when nobody can, and the job is still the caller's."""
        with self._changed:
            if self._closed or not self._has_thread_for_one_more():
                return False
            self._waiting.add(job)
            self._queue.append(job)
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

    def _has_thread_for_one_more(self) -> bool:
        """Start a thread where all have something to do; False when there is none at all."""
        if self._num_idle <= len(self._queue) and len(self._threads) < self._max_threads:
            name = f"{self._name}-{len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no more of them: the others must do
                return bool(self._threads)
            self._threads.append(thread)
        return True

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._run(job)

    def _next(self) -> ReadJob | None:
        """Return a job that nobody has taken away; None at the end."""
        with self._changed:
            while not self._closed:
                while self._queue:
                    job = self._queue.popleft()
                    if job in self._waiting:
                        return job
                self._num_idle += 1
                self._changed.wait()
                self._num_idle -= 1
        return None
