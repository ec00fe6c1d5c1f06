"""The host tier: a pool of shared memory, and the books of what lies in it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stafette.kvtransfer.events import KvEvent
from stafette.kvtransfer.memory import SharedMemory
from stafette.kvtransfer.tiers import chains
from stafette.kvtransfer.tiers.cache import BlockCache, Entry
from stafette.kvtransfer.tiers.config import HostConfig, num_blocks
from stafette.kvtransfer.tiers.device import Rows
from stafette.kvtransfer.tiers.registry import make_policy
from stafette.kvtransfer.tiers.stats import Counters, TierStats, fragmentation

Emit = Callable[[KvEvent], None]


class HostTier:
    """Whoever calls it holds the store's lock, except to touch rows that are held for it."""

    def __init__(self, config: HostConfig, block_bytes: int, emit: Emit, last: bool = True) -> None:
        """`last`: there is no tier below, where a child would still find its parent."""
        self.num_blocks = num_blocks(config, block_bytes)
        self.block_bytes = block_bytes
        self.memory = SharedMemory("host-tier", self.num_blocks * block_bytes, config.huge_pages)
        self.rows: Rows = self.memory.array.reshape(self.num_blocks, block_bytes)
        policy = make_policy(config.policy, self.num_blocks)
        self.cache = BlockCache(self.num_blocks, policy, leaves_first=last)
        self.counters = Counters()
        self._emit = emit

    def store(self, entries: Sequence[Entry]) -> None:
        """Let blocks of one chain be found, in its order."""
        self.cache.store(entries)
        self.counters.stored += len(entries)
        for event in chains.stored(entries, "host"):
            self._emit(event)

    def evict(self, count: int) -> list[Entry]:
        """Let blocks go at once; return them."""
        gone = self.cache.evict(count)
        self.cache.give_back(entry.slot for entry in gone)
        self._note_evicted(gone)
        return gone

    def retire(self, nominated: Iterable[Entry]) -> list[Entry]:
        """Let nominated blocks go that nobody has used meanwhile; return them."""
        gone = [entry for entry in nominated if self.cache.retire(entry)]
        self._note_evicted(gone)
        return gone

    def clear(self) -> None:
        gone = list(self.cache)
        for entry in gone:
            self.cache.remove(entry.key)
        self._tell_removed(gone)

    def _note_evicted(self, gone: Sequence[Entry]) -> None:
        self.counters.evicted += len(gone)
        self._tell_removed(gone)

    def _tell_removed(self, gone: Sequence[Entry]) -> None:
        for event in chains.removed(gone, "host"):
            self._emit(event)

    def snapshot(self) -> "Snapshot":
        return Snapshot.of(self.cache, self.counters)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the lock is needed for; the rest of the work is done without it."""

    num_blocks: int
    used_blocks: int
    pinned_blocks: int
    free_slots: list[int]
    counters: Counters
    off: str

    @classmethod
    def of(cls, cache: BlockCache, counters: Counters, off: str = "") -> "Snapshot":
        free, copy = cache.free_slots(), replace(counters)
        return cls(cache.num_slots, len(cache), cache.num_pinned, free, copy, off)

    def stats(self) -> TierStats:
        scattered = fragmentation(np.array(self.free_slots, np.int64))
        sizes = (self.num_blocks, self.used_blocks, self.pinned_blocks)
        return TierStats(*sizes, scattered, self.counters, self.off)
