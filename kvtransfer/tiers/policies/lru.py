"""The least recently used block goes first."""

from collections import OrderedDict

from stafette.kvtransfer.tiers.policy import EvictionPolicy


class Lru(EvictionPolicy):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._order: OrderedDict[bytes, None] = OrderedDict()  # the next to go first

    def __len__(self) -> int:
        return len(self._order)

    def add(self, key: bytes) -> None:
        self._order[key] = None

    def touch(self, key: bytes) -> None:
        self._order.move_to_end(key)

    def remove(self, key: bytes) -> None:
        del self._order[key]

    def evict(self) -> bytes:
        return self._order.popitem(last=False)[0]

    def restore(self, key: bytes) -> None:
        self._order[key] = None
        self._order.move_to_end(key, last=False)
