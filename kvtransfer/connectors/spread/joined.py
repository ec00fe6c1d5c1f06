"""One load made of several: each host loads its share of the same blocks."""

import threading

from stafette.kvtransfer.connectors.connector import LoadOrder
from stafette.kvtransfer.connectors.loading import Load
from stafette.kvtransfer.errors import KvTransferError


class JoinedLoad:
    """`load` ends with the last of `count` parts, with the blocks that all of them have."""

    def __init__(self, order: LoadOrder, count: int) -> None:
        self.load = Load(order)
        self.load.begin_write()
        self._left = count
        self._arrived = len(order.blocks)
        self._error: KvTransferError | None = None
        self._lock = threading.Lock()

    def part(self, num_arrived: int, error: KvTransferError | None) -> None:
        """A part has settled: nothing writes there any more."""
        with self._lock:
            self._left -= 1
            self._arrived = min(self._arrived, num_arrived)
            self._error = self._error or error
            if self._left:
                return
        load, first = self.load, self.load.order.first
        if self._error is not None:
            load.limit(first + self._arrived, self._error)
        load.arrive(first, first + self._arrived)
        load.end_write()
