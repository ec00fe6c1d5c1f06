"""The names of blocks that were evicted of late: who comes back was evicted too early."""

from collections import OrderedDict


class Ghosts:
    """A queue of at most `capacity` keys, the oldest of which is forgotten first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: bytes) -> None:
        self._keys[key] = None
        if len(self._keys) > self._capacity:
            self._keys.popitem(last=False)

    def discard(self, key: bytes) -> bool:
        """Forget a key; return whether it was known."""
        if key not in self._keys:
            return False
        del self._keys[key]
        return True
