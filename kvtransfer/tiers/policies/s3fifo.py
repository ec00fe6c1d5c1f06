"""S3-FIFO (Yang et al., SOSP 2023): a small queue on probation, a main one, and ghosts.

A new block enters the small queue. At its end it moves to the main queue if it was used meanwhile,
else it is evicted and remembered: when it comes back it goes to the main queue at once. At the end
of the main queue, each use since the last round buys a block another round.
"""

from collections import OrderedDict

from stafette.kvtransfer.tiers.policies.ghosts import Ghosts
from stafette.kvtransfer.tiers.policy import EvictionPolicy

SMALL_SHARE = 0.1
_MOST_USES = 3


class S3Fifo(EvictionPolicy):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._small: OrderedDict[bytes, None] = OrderedDict()  # the oldest first
        self._main: OrderedDict[bytes, None] = OrderedDict()
        self._ghosts = Ghosts(capacity)
        self._uses: dict[bytes, int] = {}  # since it came or got another round

    def __len__(self) -> int:
        return len(self._uses)

    def add(self, key: bytes) -> None:
        queue = self._main if self._ghosts.discard(key) else self._small
        queue[key] = None
        self._uses[key] = 0

    def touch(self, key: bytes) -> None:
        self._uses[key] = min(_MOST_USES, self._uses[key] + 1)

    def remove(self, key: bytes) -> None:
        del (self._small if key in self._small else self._main)[key]
        del self._uses[key]

    def evict(self) -> bytes:
        if not self._uses:
            raise KeyError("no block is left")
        while True:
            small = len(self._small) > self.capacity * SMALL_SHARE or not self._main
            key = self._end_probation() if small else self._end_round()
            if key is not None:
                del self._uses[key]
                return key

    def restore(self, key: bytes) -> None:
        self._ghosts.discard(key)
        self._main[key] = None
        self._main.move_to_end(key, last=False)
        self._uses[key] = 0

    def _end_probation(self) -> bytes | None:
        key, _ = self._small.popitem(last=False)
        if not self._uses[key]:
            self._ghosts.add(key)
            return key
        self._main[key] = None
        self._uses[key] = 0
        return None

    def _end_round(self) -> bytes | None:
        key, _ = self._main.popitem(last=False)
        if not self._uses[key]:
            return key
        self._main[key] = None
        self._uses[key] -= 1
        return None
