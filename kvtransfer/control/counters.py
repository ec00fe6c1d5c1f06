"""Counts what happens on control connections, and keeps strangers from filling the log."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    connections: int = 0  # whose handshake succeeded
    refused: Counter[str] = field(default_factory=Counter)  # reason -> connections
    malformed: int = 0  # connections closed for bytes that break the format
    calls: Counter[str] = field(default_factory=Counter)  # by operation
    errors: Counter[str] = field(default_factory=Counter)  # by class: what calls ended with
    failures: int = 0  # of those, exceptions that nobody foresaw; the log has them


class Tally:
    """Counters that many threads change."""

    def __init__(self) -> None:
        self._counters = Counters()
        self._lock = threading.Lock()

    def connected(self) -> None:
        with self._lock:
            self._counters.connections += 1

    def refused(self, reason: str) -> None:
        with self._lock:
            self._counters.refused[reason] += 1

    def malformed(self) -> None:
        with self._lock:
            self._counters.malformed += 1

    def called(self, operation: str) -> None:
        with self._lock:
            self._counters.calls[operation] += 1

    def raised(self, error: str) -> None:
        with self._lock:
            self._counters.errors[error] += 1

    def failed(self) -> None:
        with self._lock:
            self._counters.failures += 1

    def read(self) -> Counters:
        """Return a copy."""
        with self._lock:
            now = self._counters
            return Counters(
                now.connections,
                now.refused.copy(),
                now.malformed,
                now.calls.copy(),
                now.errors.copy(),
                now.failures,
            )


class Seldom:
    """Lets one log line of a kind pass in a while; the counters know of all of them."""

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._passed_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def passes(self, kind: str) -> bool:
        now = self._clock()
        with self._lock:
            last = self._passed_at.get(kind)
            if last is not None and now < last + self._every_s:
                return False
            self._passed_at[kind] = now
        return True
