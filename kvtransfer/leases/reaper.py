"""Ends leases when they are due: a thread that sleeps until the next one is."""

import threading
import time
from collections.abc import Callable


class Reaper:
    """`expire` ends what is due and returns when the next one will be, or None."""

    def __init__(
        self, expire: Callable[[], float | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._expire = expire
        self._clock = clock
        self._closed = False
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-reaper", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """There is a lease that may be due sooner than the others."""
        self._news.set()

    def close(self) -> None:
        self._closed = True
        self._news.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            soonest = self._expire()
            self._news.wait(None if soonest is None else max(0.0, soonest - self._clock()))
            self._news.clear()
