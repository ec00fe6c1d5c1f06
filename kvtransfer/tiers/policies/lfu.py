"""The least frequently used block goes first, with dynamic ageing (LFU-DA).

A block's rank is its number of uses plus the rank of the last block evicted: without that, what was
popular yesterday would stay for ever. Among equals, the least recently used goes first.
"""

import heapq
from collections import OrderedDict

from stafette.kvtransfer.tiers.policy import EvictionPolicy


class Lfu(EvictionPolicy):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._age = 0  # the rank of the last victim
        self._uses: dict[bytes, int] = {}
        self._ranks: dict[bytes, int] = {}
        self._buckets: dict[int, OrderedDict[bytes, None]] = {}  # by rank
        self._heap: list[int] = []  # the ranks that have a bucket, which may be empty

    def __len__(self) -> int:
        return len(self._ranks)

    def add(self, key: bytes) -> None:
        self._uses[key] = 1
        self._enter(key, 1 + self._age)

    def touch(self, key: bytes) -> None:
        self._leave(key)
        self._uses[key] += 1
        self._enter(key, self._uses[key] + self._age)

    def remove(self, key: bytes) -> None:
        self._leave(key)
        del self._uses[key]

    def evict(self) -> bytes:
        if not self._ranks:
            raise KeyError("no block is left")
        while not self._buckets[self._heap[0]]:
            del self._buckets[heapq.heappop(self._heap)]
        self._age = self._heap[0]
        key = next(iter(self._buckets[self._age]))
        self.remove(key)
        return key

    def restore(self, key: bytes) -> None:
        self._uses[key] = 1
        self._enter(key, self._age)
        self._buckets[self._age].move_to_end(key, last=False)

    def _enter(self, key: bytes, rank: int) -> None:
        if rank not in self._buckets:
            self._buckets[rank] = OrderedDict()
            heapq.heappush(self._heap, rank)
        self._buckets[rank][key] = None
        self._ranks[key] = rank

    def _leave(self, key: bytes) -> None:
        del self._buckets[self._ranks.pop(key)][key]
