"""2Q (Johnson and Shasha, VLDB 1994): new blocks on probation, proven ones in a queue of their own.

A block that is used again, or comes back soon after it was evicted, is proven. While those on
probation take more than their share, the oldest of them goes, else the least recently used of the
proven ones. Unlike the paper's, a block is proven by its first use on probation already: prompts
repeat after minutes, not in bursts.
"""

from collections import OrderedDict

from stafette.kvtransfer.tiers.policies.ghosts import Ghosts
from stafette.kvtransfer.tiers.policy import EvictionPolicy

PROBATION_SHARE = 0.5


class TwoQueue(EvictionPolicy):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._probation: OrderedDict[bytes, None] = OrderedDict()  # the oldest first
        self._proven: OrderedDict[bytes, None] = OrderedDict()  # least recently used first
        self._ghosts = Ghosts(capacity)

    def __len__(self) -> int:
        return len(self._probation) + len(self._proven)

    def add(self, key: bytes) -> None:
        queue = self._proven if self._ghosts.discard(key) else self._probation
        queue[key] = None

    def touch(self, key: bytes) -> None:
        if key in self._proven:
            self._proven.move_to_end(key)
        else:
            del self._probation[key]
            self._proven[key] = None

    def remove(self, key: bytes) -> None:
        del (self._proven if key in self._proven else self._probation)[key]

    def evict(self) -> bytes:
        over = len(self._probation) > self.capacity * PROBATION_SHARE
        if not over and self._proven:
            return self._proven.popitem(last=False)[0]
        key, _ = self._probation.popitem(last=False)
        self._ghosts.add(key)
        return key

    def restore(self, key: bytes) -> None:
        self._ghosts.discard(key)
        self._probation[key] = None
        self._probation.move_to_end(key, last=False)
