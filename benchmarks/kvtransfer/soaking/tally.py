"""What the soak counts, from many threads."""

import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    done: Counter[str] = field(default_factory=Counter)  # by what: read, write
    failed: Counter[str] = field(default_factory=Counter)  # by the error's class
    cancelled: int = 0
    nbytes: int = 0
    wrong: list[str] = field(default_factory=list)  # bytes that should not be there
    hangs: list[str] = field(default_factory=list)  # waits beyond a deadline
    surprises: list[str] = field(default_factory=list)  # errors of no known class
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count_done(self, what: str, nbytes: int) -> None:
        with self.lock:
            self.done[what] += 1
            self.nbytes += nbytes

    def count_failed(self, error: Exception) -> None:
        with self.lock:
            self.failed[type(error).__name__] += 1

    def note(self, where: list[str], what: str) -> None:
        with self.lock:
            where.append(what)
