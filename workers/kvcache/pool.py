"""The block pool: who holds which KV block, which blocks can be found again, which go first.

A block is free (holds nothing of use), held (by tables or leases, which are counted), or idle: held
by nobody, but cached, so found again by its hash until its place is needed.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from stafette.kvtransfer.events import AllCleared, BlockRemoved, BlockStored, KvEvent

_NOBODY = -1


class BlockPool:
    """Counts references, indexes cached blocks by hash, evicts the least recently used leaf.

    Whoever holds a cached block of a table holds its parents too, and gives a table back from its
    end: so the oldest idle block is a leaf. Only a lease, which may hold a child alone, breaks that
    order; a parent found with children left is set aside until the last of them is gone.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        on_event: Callable[[KvEvent], None] | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.generation = 0  # what was computed under an older one must not be published
        self.queries = 0  # tokens looked up
        self.hits = 0  # tokens found
        self._on_event = on_event
        self._refs = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._parents = [_NOBODY] * num_blocks
        self._num_children = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # the next to go first
        self._index: dict[bytes, int] = {}
        self._num_held = 0

    @property
    def num_held(self) -> int:
        return self._num_held

    @property
    def num_available(self) -> int:
        """Free and idle blocks."""
        return self.num_blocks - self._num_held

    @property
    def num_idle(self) -> int:
        return self.num_available - len(self._free)

    @property
    def usage(self) -> float:
        return self._num_held / self.num_blocks

    @property
    def cached_hashes(self) -> list[bytes]:
        """Return all that can be found, parents before children."""
        return list(self._index)

    def references(self, block: int) -> int:
        return self._refs[block]

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """Return the cached blocks of the longest prefix, without taking them."""
        blocks = []
        for block_hash in hashes:
            block = self._index.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_needed(self, cached: Sequence[int], num_blocks: int) -> int:
        """Return how many available blocks a table takes up that begins with these cached ones."""
        return num_blocks - sum(1 for block in cached if self._refs[block])

    def take(self, cached: Sequence[int], num_blocks: int, spare: int = 0) -> list[int] | None:
        """Hold a table that begins with these cached blocks, or nothing when too few are left.

        `spare` is how many must stay available afterwards.
        """
        if self.num_needed(cached, num_blocks) + spare > self.num_available:
            return None
        self.pin(cached)
        new = self.try_allocate(num_blocks - len(cached))
        if new is None:
            self.release(cached)
            return None
        return [*cached, *new]

    def try_allocate(self, count: int) -> list[int] | None:
        """Hold `count` blocks of unknown content, or none when they are not there."""
        if count > self.num_available:
            return None
        evicted: list[bytes] = []
        blocks: list[int] = []
        while len(blocks) < count:
            block = self._free.pop() if self._free else self._evict(evicted)
            if block is None:  # what is left has children under lease
                break
            blocks.append(block)
        if evicted:
            self._emit(BlockRemoved(tuple(evicted)))
        if len(blocks) < count:
            self._free += blocks
            return None
        for block in blocks:
            self._refs[block] = 1
        self._num_held += count
        return blocks

    def pin(self, blocks: Iterable[int]) -> None:
        """Add a reference to each: neither freed nor overwritten until it is released."""
        for block in blocks:
            if not self._refs[block]:
                assert self._hashes[block] is not None, "a free block cannot be held"
                self._idle.pop(block, None)
                self._num_held += 1
            self._refs[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Take a reference from each block of a table, or a piece of one."""
        for block in reversed(blocks):
            assert self._refs[block] > 0, "released more often than taken"
            self._refs[block] -= 1
            if not self._refs[block]:
                self._num_held -= 1
                if self._hashes[block] is None:
                    self._free.append(block)
                else:
                    self._idle[block] = None

    unpin = release

    def publish(self, table: list[int], hashes: Sequence[bytes], first: int, end: int) -> list[int]:
        """Let the table's blocks from `first` up to `end` be found; return the table.

        Where the same content is cached already, the table gets that block and gives its own back.
        """
        stored: list[bytes] = []
        for i in range(first, end):
            known = self._index.get(hashes[i])
            if known is None:
                self._store(table[i], hashes[i], table[i - 1] if i else _NOBODY)
                stored.append(hashes[i])
            elif known != table[i]:
                self._emit_stored(stored, hashes, i)
                self.pin((known,))
                self.release((table[i],))
                table = [*table[:i], known, *table[i + 1 :]]
        self._emit_stored(stored, hashes, end)
        return table

    def reset_prefix_cache(self) -> None:
        """Forget what every block holds. Tables keep theirs, but nothing of them is found again."""
        idle = [b for b in self._index.values() if not self._refs[b]]
        for block in self._index.values():
            self._hashes[block] = None
            self._parents[block] = _NOBODY
            self._num_children[block] = 0
        self._index.clear()
        self._idle.clear()
        self._free += idle
        self.generation += 1
        self._emit(AllCleared())

    def _store(self, block: int, block_hash: bytes, parent: int) -> None:
        assert self._hashes[block] is None, "a block has one content"
        assert parent == _NOBODY or self._hashes[parent] is not None, "its prefix is cached"
        self._hashes[block] = block_hash
        self._index[block_hash] = block
        self._parents[block] = parent
        if parent != _NOBODY:
            self._num_children[parent] += 1

    def _evict(self, evicted: list[bytes]) -> int | None:
        while self._idle:
            block, _ = self._idle.popitem(last=False)
            if self._num_children[block]:
                continue  # set aside: `_forget` of its last child brings it back
            evicted.append(self._forget(block))
            return block
        return None

    def _forget(self, block: int) -> bytes:
        block_hash, parent = self._hashes[block], self._parents[block]
        assert block_hash is not None
        del self._index[block_hash]
        self._hashes[block], self._parents[block] = None, _NOBODY
        if parent != _NOBODY:
            self._num_children[parent] -= 1
            if not (self._num_children[parent] or self._refs[parent] or parent in self._idle):
                self._idle[parent] = None
                self._idle.move_to_end(parent, last=False)  # it had waited longer than the child
        return block_hash

    def _emit_stored(self, stored: list[bytes], hashes: Sequence[bytes], end: int) -> None:
        """Tell of `stored`, the hashes that end before `end`; empties it."""
        if stored and self._on_event is not None:
            first = end - len(stored)
            parent = hashes[first - 1] if first else None
            self._on_event(BlockStored(parent, tuple(stored)))
        stored.clear()

    def _emit(self, event: KvEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)
