"""Counts what happens on the connections of the TCP transport, on both sides."""

import ctypes
import threading
from collections import Counter
from dataclasses import dataclass, field, replace


@dataclass(slots=True)
class TcpCounters:
    connections: int = 0  # that peers dialled
    dialled: int = 0  # that we dialled
    requests: int = 0  # of peers
    bytes_out: int = 0  # of our regions, sent
    bytes_in: int = 0  # of peers' regions, received
    refused: Counter[str] = field(default_factory=Counter)  # requests, by the error's class
    malformed: int = 0  # connections closed for bytes that break the format
    stalled: int = 0  # connections closed because the peer took or said nothing in time


class TcpTally:
    """Counters that many threads change."""

    def __init__(self) -> None:
        self._counters = TcpCounters()
        self.native = (ctypes.c_uint64 * 2)()  # requests and bytes out that native code counts
        self._lock = threading.Lock()

    def count(self, name: str, number: int = 1) -> None:
        with self._lock:
            setattr(self._counters, name, getattr(self._counters, name) + number)

    def refused(self, error: Exception) -> None:
        with self._lock:
            self._counters.refused[type(error).__name__] += 1

    def read(self) -> TcpCounters:
        """Return a copy."""
        with self._lock:
            found = replace(self._counters, refused=self._counters.refused.copy())
        found.requests += self.native[0]
        found.bytes_out += self.native[1]
        return found
