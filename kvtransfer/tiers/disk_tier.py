"""The disk tier: blocks in slots of a file, found after a restart, checked when they are read.

Nothing that a disk does is raised here. A block that cannot be read, or is not what was written, is
skipped and counted; after some errors in a row, or when one call takes too long, the tier is off.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from threading import Condition

import numpy as np

from stafette.kvtransfer.tiers import chains
from stafette.kvtransfer.tiers.admission import make_admission
from stafette.kvtransfer.tiers.cache import BlockCache, Entry
from stafette.kvtransfer.tiers.config import DiskConfig, num_blocks
from stafette.kvtransfer.tiers.device import Rows
from stafette.kvtransfer.tiers.disk_files import DiskFiles
from stafette.kvtransfer.tiers.disk_format import Head, Record, checksum
from stafette.kvtransfer.tiers.host_tier import Emit, Snapshot
from stafette.kvtransfer.tiers.job import Outcome
from stafette.kvtransfer.tiers.machinery import Machinery
from stafette.kvtransfer.tiers.registry import make_policy
from stafette.kvtransfer.tiers.stats import Counters

_log = logging.getLogger(__name__)


class DiskTier:
    """`lock` is the store's. `read`, `write` and `close` take it themselves, the rest want it."""

    def __init__(
        self,
        config: DiskConfig,
        head: Head,
        lock: Condition,
        emit: Emit,
        machinery: Machinery | None = None,
    ) -> None:
        size = num_blocks(config, head.block_bytes)
        self.config = config
        self.cache = BlockCache(size, make_policy(config.policy, size))
        self.admission = make_admission(config.admission, size)
        self.counters = Counters()
        self.off = ""  # why it is not used any more
        self.generation = 0  # counts what was forgotten
        self._lock = lock
        self._emit = emit
        self._files: DiskFiles | None = None
        self._checksums = np.zeros(size, np.uint64)  # of a slot's block
        self._coming: set[bytes] = set()  # claimed, and not written yet
        self._writing: set[bytes] = set()  # at this moment
        self._sequences = count(1)  # of records
        self._failures: Counter[str] = Counter()  # in a row, of reads and of writes
        self._calls = count()
        self._under_way: dict[int, float] = {}  # calls, and since when
        try:
            self._files = (machinery or Machinery()).disk_files(config, head, size)
        except OSError as error:
            self.counters.errors += 1
            self._switch_off(f"it cannot be opened: {error}")
        else:
            self._adopt(self._files)

    @property
    def direct(self) -> bool:
        """Whether it goes past the page cache."""
        return self._files is not None and self._files.direct

    def touch(self, hashes: Sequence[bytes], below: Sequence[bytes]) -> None:
        """A prompt has these blocks, and some of them were not on the host."""
        if not self.off:
            self.cache.touch(below)
            self.admission.used(hashes, below)

    def claim(self, key: bytes) -> bool:
        """Whether a block should be written. Whoever hears yes does so, or calls `give_up`."""
        if self.off or key in self.cache or key in self._coming:
            return False
        if not self.admission.admits(key, full=not self.cache.num_free):
            self.counters.refused += 1
            return False
        self._coming.add(key)
        return True

    def give_up(self, keys: Sequence[bytes]) -> None:
        self._coming.difference_update(keys)

    def read(self, entries: Sequence[Entry], pool: Rows, rows: Sequence[int]) -> list[Outcome]:
        """Read pinned blocks into rows of the pool; return what became of each."""
        pairs = sorted(zip(entries, rows, range(len(rows)), strict=True), key=lambda p: p[0].slot)
        slots, into = [entry.slot for entry, _, _ in pairs], [pool[row] for _, row, _ in pairs]
        seconds = self._attempt("reading", lambda files: files.read(slots, into))
        if seconds is None and len(pairs) > 1:  # find out which of them it was
            return [self.read([e], pool, [row])[0] for e, row in zip(entries, rows, strict=True)]
        outcomes = [Outcome.FAILED] * len(pairs)
        if seconds is not None:
            with self._lock:
                self.counters.read_s += seconds
                self.counters.read_bytes += sum(row.nbytes for row in into)
            for entry, row, place in pairs:
                outcomes[place] = self._verified(entry, pool[row])
        return outcomes

    def write(self, blocks: Sequence[Entry], pool: Rows, generation: int) -> None:
        """Write blocks that were claimed in that generation, out of their host slots.

        They are of one chain, in its order. What finds no slot is not written.
        """
        with self._lock:
            placed = self._reserve(blocks) if generation == self.generation else {}
            head = self._files.head if self._files is not None else None
        rows = [pool[block.slot] for block in placed.values()]
        records = self._records(placed, rows)
        seconds = None
        if records and head is not None:
            seconds = self._attempt("writing", lambda files: files.write(head, rows, records))
        with self._lock:
            self._writing.difference_update(block.key for block in placed.values())
            if generation == self.generation:
                self.give_up([block.key for block in blocks])
            if seconds is None or self.off or generation != self.generation:
                self.cache.give_back(placed)
                return
            self._store(records)
            self.counters.written_s += seconds
            self.counters.written_bytes += sum(row.nbytes for row in rows)

    def forget(self) -> None:
        """Find nothing of before any more. Then `clear`, without the lock."""
        self.generation += 1
        self._coming.clear()
        self._forget_all()

    def clear(self) -> None:
        """Let a restart find nothing of before either."""
        if self._attempt("writing", DiskFiles.clear) is None:
            with self._lock:
                self._switch_off("it could not be cleared")

    def check_stall(self) -> None:
        """Switch the tier off when a call hangs."""
        oldest = min(list(self._under_way.values()), default=None)
        if oldest is not None and time.monotonic() - oldest > self.config.stall_s:
            self._switch_off(f"a call took longer than {self.config.stall_s:g} s")

    def close(self) -> None:
        if self._files is not None:
            self._files.close()

    def snapshot(self) -> Snapshot:
        return Snapshot.of(self.cache, self.counters, self.off)

    def _adopt(self, files: DiskFiles) -> None:
        """Take over what a life before has left."""
        found = files.found
        newest: dict[bytes, tuple[int, Record]] = {}
        for slot, record in found.records.items():
            known = newest.get(record.key)
            if known is None or known[1].sequence < record.sequence:
                newest[record.key] = slot, record
        in_order = sorted(newest.values(), key=lambda pair: pair[1].sequence)
        entries = [Entry(record.key, record.parent, slot) for slot, record in in_order]
        for slot, record in in_order:
            self._checksums[slot] = record.checksum
        if in_order:
            self._sequences = count(in_order[-1][1].sequence + 1)
        self.counters.corrupt += found.damaged
        self.cache.adopt(entries)
        self._tell_stored(entries)

    def _reserve(self, blocks: Sequence[Entry]) -> dict[int, Entry]:
        """Return slots for as many of the first blocks as find one."""
        if self.off:
            return {}
        fresh = [b for b in blocks if b.key not in self.cache and b.key not in self._writing]
        parents = {block.parent for block in fresh}
        held = [self.cache.pin(parent) for parent in parents if parent in self.cache]
        slots, evicted = self.cache.reserve(len(fresh))
        for entry in held:
            self.cache.unpin(entry)
        self.counters.evicted += len(evicted)
        self._tell_removed(evicted)
        placed = dict(zip(sorted(slots), fresh, strict=False))
        self._writing.update(block.key for block in placed.values())
        return placed

    def _records(self, placed: dict[int, Entry], rows: Sequence[Rows]) -> dict[int, Record]:
        """Return what the slots get; records are numbered in the order of the chain."""
        return {
            slot: Record(block.key, block.parent, checksum(row), next(self._sequences))
            for (slot, block), row in zip(placed.items(), rows, strict=True)
        }

    def _store(self, records: dict[int, Record]) -> None:
        for slot, record in records.items():
            self._checksums[slot] = record.checksum
        entries = [Entry(record.key, record.parent, slot) for slot, record in records.items()]
        self.cache.store(entries)
        self.counters.stored += len(entries)
        self._tell_stored(entries)

    def _verified(self, entry: Entry, row: Rows) -> Outcome:
        if checksum(row) == self._checksums[entry.slot]:
            return Outcome.DONE
        with self._lock:
            self.counters.corrupt += 1
            if self.cache.get(entry.key) is entry:
                self.cache.remove(entry.key)
                self._tell_removed([entry])
        _log.warning("a block in slot %d of %s is corrupt", entry.slot, self.config.folder)
        self._attempt("writing", lambda files: files.blank(entry.slot))
        return Outcome.CORRUPT

    def _attempt(self, doing: str, call: Callable[[DiskFiles], None]) -> float | None:
        """Return how many seconds a call took, None when it failed or was not made."""
        if self._files is None or self.off:
            return None
        number, began = next(self._calls), time.monotonic()
        self._under_way[number] = began
        try:
            call(self._files)
        except OSError as error:
            with self._lock:
                self._failed(doing, error)
            return None
        finally:
            del self._under_way[number]
        self._failures[doing] = 0
        return time.monotonic() - began

    def _failed(self, doing: str, error: OSError) -> None:
        self.counters.errors += 1
        self._failures[doing] += 1
        _log.warning("%s the disk tier in %s: %s", doing, self.config.folder, error)
        if self._failures[doing] >= self.config.max_errors:
            self._switch_off(f"{doing} failed {self.config.max_errors} times in a row: {error}")

    def _switch_off(self, reason: str) -> None:
        if not self.off:
            self.off = reason
            _log.error("the disk tier in %s is off: %s", self.config.folder, reason)
            self._forget_all()

    def _forget_all(self) -> None:
        gone = list(self.cache)
        for entry in gone:
            self.cache.remove(entry.key)
        self._tell_removed(gone)

    def _tell_stored(self, entries: Sequence[Entry]) -> None:
        for event in chains.stored(entries, "disk"):
            self._emit(event)

    def _tell_removed(self, entries: Sequence[Entry]) -> None:
        for event in chains.removed(entries, "disk"):
            self._emit(event)
