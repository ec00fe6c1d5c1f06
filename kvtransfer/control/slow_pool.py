"""Threads for operations that wait, and an end that does not wait for ever."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait


class SlowPool:
    def __init__(self, num_threads: int) -> None:
        self._executor = ThreadPoolExecutor(num_threads, "control-slow")
        self._unfinished: set[Future[object]] = set()
        self._lock = threading.Lock()

    def submit(self, run: Callable[[], object]) -> "Future[object]":
        """Run it soon; RuntimeError after the end."""
        with self._lock:
            future = self._executor.submit(run)
            self._unfinished.add(future)
        future.add_done_callback(self._forget)
        return future

    def close(self, timeout_s: float) -> int:
        """Begin nothing more; return how many still run after that time."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            unfinished = set(self._unfinished)
        _, late = wait(unfinished, timeout_s)
        if not late:
            self._executor.shutdown(wait=True)
        return len(late)

    def _forget(self, future: "Future[object]") -> None:
        with self._lock:
            self._unfinished.discard(future)
