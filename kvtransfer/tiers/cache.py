"""The books of one tier: which block lies in which slot, who needs it, which goes next. No bytes.

A block is evicted only when nobody has pinned it and no child of it is here: a child could not be
found without its parent. The policy proposes; what has to stay is set aside until nothing holds it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from stafette.kvtransfer.tiers.policy import EvictionPolicy


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A block and its place for one stay: when it comes back it is another, even in that slot."""

    key: bytes
    parent: bytes
    slot: int


class BlockCache:
    """Not thread-safe: whoever owns it has a lock. Slots are numbered from 0."""

    def __init__(self, num_slots: int, policy: EvictionPolicy, leaves_first: bool = True) -> None:
        self.num_slots = num_slots
        self._policy = policy
        self._leaves_first = leaves_first
        self._entries: dict[bytes, Entry] = {}
        self._free = list(range(num_slots - 1, -1, -1))
        self._children: Counter[bytes] = Counter()  # of a key, here, whether it is here or not
        self._pins: Counter[int] = Counter()  # of a slot
        self._aside: set[bytes] = set()  # unknown to the policy until nothing holds them

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_pinned(self) -> int:
        return len(self._pins)

    def free_slots(self) -> list[int]:
        return self._free.copy()

    def get(self, key: bytes) -> Entry | None:
        return self._entries.get(key)

    def num_cached(self, keys: Iterable[bytes]) -> int:
        """Return how many of the first keys are here without a gap."""
        count = 0
        for key in keys:
            if key not in self._entries:
                break
            count += 1
        return count

    def touch(self, keys: Sequence[bytes]) -> None:
        """Note that blocks of a chain were used: its end is older than its beginning."""
        for key in reversed(keys):
            if key in self._aside:
                self._aside.discard(key)
                self._policy.add(key)
            elif key in self._entries:
                self._policy.touch(key)

    def reserve(self, count: int) -> tuple[list[int], list[Entry]]:
        """Return up to `count` slots to fill, and the blocks that had to go for them."""
        evicted = self.evict(count - len(self._free))
        self._free += [entry.slot for entry in evicted]
        taken = [self._free.pop() for _ in range(min(count, len(self._free)))]
        return taken, evicted

    def evict(self, count: int) -> list[Entry]:
        """Return up to `count` blocks that had to go, children first. Give their slots back."""
        evicted: list[Entry] = []
        while len(evicted) < count and (victim := self._evict()) is not None:
            evicted.append(victim)
        return evicted

    def nominate(self, count: int) -> list[Entry]:
        """Return up to `count` blocks that go next, pinned. They are found until `retire`."""
        nominated: list[Entry] = []
        while len(nominated) < count and len(self._policy):
            key = self._policy.evict()
            self._aside.add(key)
            if not self._stays(key):
                nominated.append(self.pin(key))
        return nominated

    def retire(self, entry: Entry) -> bool:
        """Release a nominated block; it goes, unless it was used or pinned meanwhile."""
        only_ours = self._pins[entry.slot] == 1 and entry.key in self._aside
        goes = only_ours and self._entries.get(entry.key) is entry
        if goes:
            self._aside.discard(entry.key)
            self._forget(entry)
        self.unpin(entry)
        return goes

    def give_back(self, slots: Iterable[int]) -> None:
        """Return slots that were reserved and not filled, or evicted."""
        self._free += slots

    def adopt(self, entries: Sequence[Entry]) -> None:
        """Let blocks be found that lie in free slots already, the least recently used first."""
        taken = {entry.slot for entry in entries}
        self._free = [slot for slot in self._free if slot not in taken]
        for entry in entries:
            self._entries[entry.key] = entry
            self._children[entry.parent] += 1
            self._policy.add(entry.key)

    def store(self, entries: Sequence[Entry]) -> None:
        """Let blocks of one chain, in its order, be found in the slots that they fill."""
        for entry in entries:
            self._entries[entry.key] = entry
            self._children[entry.parent] += 1
        for entry in reversed(entries):
            self._policy.add(entry.key)

    def remove(self, key: bytes) -> Entry | None:
        """Let a block be found no more. Its slot is free when it is no longer pinned."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if key in self._aside:
            self._aside.discard(key)
        else:
            self._policy.remove(key)
        self._forget(entry)
        if entry.slot not in self._pins:
            self._free.append(entry.slot)
        return entry

    def pin(self, key: bytes) -> Entry:
        """Keep a block that is here, and its slot as it is, until `unpin`."""
        entry = self._entries[key]
        self._pins[entry.slot] += 1
        return entry

    def unpin(self, entry: Entry) -> None:
        self._pins[entry.slot] -= 1
        if self._pins[entry.slot]:
            return
        del self._pins[entry.slot]
        if self._entries.get(entry.key) is entry:
            self._reconsider(entry.key)
        else:  # removed meanwhile
            self._free.append(entry.slot)

    def _evict(self) -> Entry | None:
        while len(self._policy):
            key = self._policy.evict()
            if not self._stays(key):
                entry = self._entries[key]
                self._forget(entry)
                return entry
            self._aside.add(key)
        return None

    def _stays(self, key: bytes) -> bool:
        pinned = self._entries[key].slot in self._pins
        return pinned or (self._leaves_first and key in self._children)

    def _forget(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self._children[entry.parent] -= 1
        if not self._children[entry.parent]:
            del self._children[entry.parent]
            self._reconsider(entry.parent)

    def _reconsider(self, key: bytes) -> None:
        if key in self._aside and not self._stays(key):
            self._aside.discard(key)
            self._policy.restore(key)
