"""Threads for operations that wait. They are daemons: one that never returns holds up no exit."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

Answer = Future[object]


class SlowPool:
    """Starts its threads when they are needed."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._threads: set[threading.Thread] = set()
        self._waiting: deque[tuple[Answer, Callable[[], object]]] = deque()
        self._idle = 0
        self._closed = False
        self._changed = threading.Condition()

    def submit(self, run: Callable[[], object]) -> Answer:
        """Run it soon; RuntimeError after the end, and where no thread can be started."""
        answer = Answer()
        with self._changed:
            if self._closed:
                raise RuntimeError("the pool is closed")
            if self._idle <= len(self._waiting) and len(self._threads) < self._num_threads:
                self._start()
            self._waiting.append((answer, run))
            self._changed.notify()
        return answer

    def close(self, timeout_s: float) -> int:
        """Begin nothing more; return how many threads still run after that time."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._closed = True
            given_up, self._waiting = self._waiting, deque()
            threads = self._threads - {threading.current_thread()}
            self._changed.notify_all()
        for answer, _ in given_up:
            answer.cancel()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return sum(thread.is_alive() for thread in threads)

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name="control-slow", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
        else:
            self._threads.add(thread)

    def _work(self) -> None:
        while (task := self._next()) is not None:
            _settle(*task)
            del task  # nothing is kept of it while the thread waits

    def _next(self) -> tuple[Answer, Callable[[], object]] | None:
        with self._changed:
            self._idle += 1
            while not self._waiting and not self._closed:
                self._changed.wait()
            self._idle -= 1
            return self._waiting.popleft() if self._waiting else None


def _settle(answer: Answer, run: Callable[[], object]) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        result = run()
    except BaseException as error:  # it is the answer
        answer.set_exception(error)
    else:
        answer.set_result(result)
