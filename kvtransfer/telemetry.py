"""What became of an agent's transfers, counted by transport and outcome."""

import threading
from collections import Counter
from dataclasses import dataclass, field

from stafette.kvtransfer.transfer import Transfer, TransferState


@dataclass(slots=True)
class TransferCounters:
    """Of one transport; of the empty name, what ended before it had one."""

    done: int = 0
    nbytes: int = 0  # of those that are done
    seconds: float = 0.0  # of those that are done, added up
    failed: Counter[str] = field(default_factory=Counter)  # by the error's class


class TransferTally:
    def __init__(self) -> None:
        self._counters: dict[str, TransferCounters] = {}
        self._lock = threading.Lock()

    def count(self, transfer: Transfer) -> None:
        """Take in a transfer that has settled."""
        with self._lock:
            counters = self._counters.get(transfer.transport)
            if counters is None:
                counters = self._counters[transfer.transport] = TransferCounters()
            if transfer.poll() is TransferState.DONE:
                counters.done += 1
                counters.nbytes += transfer.total_bytes
                counters.seconds += transfer.seconds
            else:
                counters.failed[type(transfer.error).__name__] += 1

    def read(self) -> dict[str, TransferCounters]:
        """Return a copy, by transport."""
        with self._lock:
            return {
                name: TransferCounters(c.done, c.nbytes, c.seconds, c.failed.copy())
                for name, c in self._counters.items()
            }
