"""Counts what a directory does."""

import threading
from dataclasses import dataclass, replace
from typing import Literal

Counted = Literal[
    "published",
    "beats",
    "failed_beats",
    "republished",
    "withdrawn",
    "lost",
    "snapshots",
    "changes",
    "outages",
    "kept",
    "malformed",
    "callback_errors",
]


@dataclass(slots=True)
class Counters:
    published: int = 0  # lives that began
    beats: int = 0  # that were answered
    failed_beats: int = 0
    republished: int = 0  # records that were gone, and that a heartbeat wrote again
    withdrawn: int = 0
    lost: int = 0  # names that a newer life took
    snapshots: int = 0  # the first, and one after each outage
    changes: int = 0  # that were heard of since
    outages: int = 0  # of the backend, as the follower of it saw them
    kept: int = 0  # peers that were gone after an outage, and that are shown for a while longer
    malformed: int = 0  # names and values that are none
    callback_errors: int = 0


class Tally:
    """Counters that many threads change."""

    def __init__(self) -> None:
        self._counters = Counters()
        self._lock = threading.Lock()

    def count(self, name: Counted, number: int = 1) -> None:
        with self._lock:
            setattr(self._counters, name, getattr(self._counters, name) + number)

    def read(self) -> Counters:
        """Return a copy."""
        with self._lock:
            return replace(self._counters)
