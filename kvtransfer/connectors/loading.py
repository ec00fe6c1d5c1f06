"""The handle of a load: which of its blocks are there, and when all of them may be used again."""

import logging
import threading
from collections.abc import Callable

from stafette.kvtransfer.connectors.connector import LoadOrder
from stafette.kvtransfer.errors import KvTransferError, TransferCancelled, TransferError

_log = logging.getLogger(__name__)


class Load:
    """One order under way. Any thread may call any method.

    It has ended when its blocks are there, or no more of them will come. It is settled when nothing
    writes into them any more: until then those that did not arrive belong to nobody else.
    """

    def __init__(self, order: LoadOrder) -> None:
        self.order = order
        self._there = [False] * len(order.blocks)
        self._wanted = len(order.blocks)
        self._num_writes = 0
        self._ended = False
        self._settled = False
        self._error: KvTransferError | None = None
        self._shortfall: KvTransferError | None = None  # why not all are wanted any more
        self._on_ended: list[Callable[[Load], None]] = []
        self._on_settled: list[Callable[[Load], None]] = []
        self._lock = threading.Lock()
        self._end_seen = threading.Event()
        self._quiet = threading.Event()
        if not order.blocks:
            self.arrive(order.first, order.first)

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def settled(self) -> bool:
        return self._settled

    @property
    def error(self) -> KvTransferError | None:
        """Why not all have arrived; None while it is under way, and when all have."""
        return self._error

    @property
    def num_arrived(self) -> int:
        """How many of the blocks are there, from the first on without a gap."""
        there = self._there
        return there.index(False) if False in there else len(there)

    @property
    def failed_blocks(self) -> tuple[int, ...]:
        """The blocks, by their numbers, that cannot be used; known when it has ended."""
        return self.order.blocks[self.num_arrived :]

    def wait(self, timeout_s: float) -> bool:
        """Return whether it ends within that time."""
        return self._end_seen.wait(timeout_s)

    def wait_settled(self, timeout_s: float) -> bool:
        return self._quiet.wait(timeout_s)

    def cancel(self) -> None:
        """End it, unless it has ended; what has arrived stays usable."""
        self.fail(TransferCancelled("its source"))

    def on_ended(self, call: "Callable[[Load], None]") -> None:
        """Call back once, in whichever thread ends it; at once when it has ended."""
        with self._lock:
            if not self._ended:
                self._on_ended.append(call)
                return
        self._run([call])

    def on_settled(self, call: "Callable[[Load], None]") -> None:
        """Like `on_ended`. Threads may overtake each other: look at `ended` first."""
        with self._lock:
            if not self._settled:
                self._on_settled.append(call)
                return
        self._run([call])

    # What follows is for the connector that loads.

    def begin_write(self) -> bool:
        """Say that something will write into the blocks; False: it must not, all is over."""
        with self._lock:
            if self._ended:
                return False
            self._num_writes += 1
        return True

    def end_write(self) -> None:
        with self._lock:
            self._num_writes -= 1
            calls = self._settle()
        self._run(calls)

    def arrive(self, first: int, end: int) -> None:
        """Blocks are there, by their places in the prompt. Too late when it has ended."""
        with self._lock:
            if self._ended:
                return
            first, end = first - self.order.first, end - self.order.first
            self._there[first:end] = [True] * (end - first)
            calls = self._end_if_complete()
        self._run(calls)

    def limit(self, end: int, error: KvTransferError) -> None:
        """No block from this place on will come; what lies before it still may."""
        with self._lock:
            if self._ended:
                return
            wanted = max(0, end - self.order.first)
            if wanted < self._wanted:
                self._wanted, self._shortfall = wanted, error
            calls = self._end_if_complete()
        self._run(calls)

    def fail(self, error: KvTransferError) -> None:
        """Nothing more will come."""
        with self._lock:
            calls = [] if self._ended else self._end(error)
        self._run(calls)

    def _end_if_complete(self) -> "list[Callable[[Load], None]]":
        return self._end(self._shortfall) if all(self._there[: self._wanted]) else []

    def _end(self, error: KvTransferError | None) -> "list[Callable[[Load], None]]":
        self._ended, self._error = True, error
        calls, self._on_ended = self._on_ended, []
        return [*calls, Load._tell_ended, *self._settle()]

    def _settle(self) -> "list[Callable[[Load], None]]":
        if self._settled or not self._ended or self._num_writes:
            return []
        self._settled = True
        calls, self._on_settled = self._on_settled, []
        return [*calls, Load._tell_settled]

    def _tell_ended(self) -> None:
        self._end_seen.set()

    def _tell_settled(self) -> None:
        self._quiet.set()

    def _run(self, calls: "list[Callable[[Load], None]]") -> None:
        for call in calls:
            try:
                call(self)
            except Exception:  # the caller's code: it must not keep others waiting
                _log.exception("a callback of the load for %s failed", self.order.request_id)


def failed_load(order: LoadOrder, reason: str) -> Load:
    """Return a load that has ended before it began."""
    load = Load(order)
    load.fail(TransferError(reason))
    return load
