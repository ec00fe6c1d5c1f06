"""Knows the jobs that are not done, and ends those whose deadline has passed: one thread."""

import heapq
import threading
import time
from collections.abc import Callable
from itertools import count

from stafette.kvtransfer.tiers.job import BlockJob

_LONGEST_SLEEP_S = 1.0


class Expiry:
    """`look` is called now and then too, for what else may take too long."""

    def __init__(
        self, look: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look = look
        self._clock = clock
        self._live: set[BlockJob] = set()
        self._heap: list[tuple[float, int, BlockJob]] = []
        self._numbers = count()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="tiers-expiry", daemon=True)
        self._thread.start()

    def watch(self, job: BlockJob) -> None:
        with self._changed:
            self._live.add(job)
            heapq.heappush(self._heap, (job.deadline, next(self._numbers), job))
            if self._heap[0][2] is job:
                self._changed.notify()
        job.on_done(self._forget)

    def cancel_all(self) -> None:
        with self._changed:
            live = list(self._live)
        for job in live:
            job.cancel()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _forget(self, job: BlockJob) -> None:
        with self._changed:
            self._live.discard(job)
            while self._heap and self._heap[0][2].done:
                heapq.heappop(self._heap)

    def _run(self) -> None:
        while not self._closed:
            for job in self._due():
                job.expire()
            self._look()
            with self._changed:
                if not self._closed:
                    self._changed.wait(self._rest_s())

    def _due(self) -> list[BlockJob]:
        due, now = [], self._clock()
        with self._changed:
            while self._heap and self._heap[0][0] <= now:
                due.append(heapq.heappop(self._heap)[2])
        return due

    def _rest_s(self) -> float:
        if not self._heap:
            return _LONGEST_SLEEP_S
        return min(_LONGEST_SLEEP_S, max(0.0, self._heap[0][0] - self._clock()))
