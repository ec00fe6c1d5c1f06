"""Makes room on the host: what leaves it is written to disk first, as far as the disk keeps up.

A few slots are kept free, so that what arrives never waits for a disk. They are emptied in the
background; when that is too slow, blocks leave without being written, which is counted.
"""

import time
from collections.abc import Sequence
from functools import partial
from threading import Condition

from stafette.kvtransfer.tiers import chains
from stafette.kvtransfer.tiers.cache import Entry
from stafette.kvtransfer.tiers.disk_tier import DiskTier
from stafette.kvtransfer.tiers.host_tier import HostTier
from stafette.kvtransfer.tiers.machinery import Lanes, Machinery

_SPARE_BATCHES = 4
_SPARE_SHARE = 1 / 8  # of the host's slots, at most


class Demoter:
    """`lock` is the store's. `take`, `write_early` and `unsaved` want it, the others take it."""

    def __init__(
        self,
        host: HostTier,
        disk: DiskTier | None,
        lane: Lanes,
        lock: Condition,
        batch: int,
        machinery: Machinery,
    ) -> None:
        self._host = host
        self._disk = disk
        self._lane = lane
        self._lock = lock
        self._batch = batch
        self._machinery = machinery
        most = max(int(host.num_blocks * _SPARE_SHARE), min(1, host.num_blocks - 1))
        self._spare = min(most, _SPARE_BATCHES * batch) if disk is not None else 0
        self.room = host.num_blocks - self._spare  # blocks that can stay on the host
        self._leaving = 0  # blocks that go when they are written

    def take(self, count: int, patience_s: float = 0.0) -> list[int]:
        """Return up to `count` slots to fill; wait that long for a disk that is writing."""
        cache, deadline = self._host.cache, self._machinery.now() + patience_s
        while cache.num_free < count:
            self._sweep()  # each time: a block that was used meanwhile does not go after all
            left_s = deadline - self._machinery.now()
            if not self._leaving or left_s <= 0 or not self._wait(left_s):
                break
        self._count_lost(self._host.evict(count - cache.num_free))
        rows, _ = cache.reserve(min(count, cache.num_free))
        self._sweep()
        return rows

    def _wait(self, seconds: float) -> bool:
        return self._machinery.wait(self._lock, seconds)

    def take_writing(self, count: int) -> list[int]:
        """Return up to `count` slots to fill, for a thread that may write what they hold."""
        disk, cache = self._disk, self._host.cache
        with self._lock:
            kept = self._nominate(count - cache.num_free)
            generation = disk.generation if disk is not None else 0
        if disk is not None and kept:
            disk.write(kept, self._host.rows, generation)
        with self._lock:
            self._host.retire(kept)
            rows, _ = cache.reserve(min(count, cache.num_free))
            self._sweep()
        return rows

    def write_early(self, entries: Sequence[Entry]) -> None:
        """Write blocks of one chain that have just arrived, so that they can leave at once."""
        disk = self._disk
        if disk is None or disk.config.write != "arrival":
            return
        wanted = self._claimed(entries)
        for entry in wanted:
            self._host.cache.pin(entry.key)
        write = partial(self._write_pinned, disk, wanted, disk.generation)
        if wanted and not self._lane.submit(write, len(wanted), urgent=False):
            disk.give_up([entry.key for entry in wanted])
            self._unpin(wanted)

    def unsaved(self) -> list[list[Entry]]:
        """Return what is on the host alone, pinned, in batches for `save`."""
        if self._disk is None or self._disk.off:
            return []
        alone = [entry for entry in self._host.cache if entry.key not in self._disk.cache]
        in_order = [entry for run in chains.in_runs(alone) for entry in run]
        for entry in in_order:
            self._host.cache.pin(entry.key)
        return [in_order[i : i + self._batch] for i in range(0, len(in_order), self._batch)]

    def save(self, batch: Sequence[Entry], deadline: float) -> None:
        """Write a batch of `unsaved`, whatever the admission says."""
        if self._disk is not None and time.monotonic() < deadline:
            self._write_pinned(self._disk, batch, self._disk.generation)

    def _sweep(self) -> None:
        """Begin to empty slots, so that some are free soon."""
        kept = self._nominate(self._spare - self._host.cache.num_free - self._leaving)
        for first in range(0, len(kept), self._batch):
            self._write_later(kept[first : first + self._batch])

    def _nominate(self, count: int) -> list[Entry]:
        """Let blocks go; return those that must be written first, and are found until then."""
        nominated = self._host.cache.nominate(count)
        kept = self._claimed(nominated)
        keys = {entry.key for entry in kept}
        self._host.retire(entry for entry in nominated if entry.key not in keys)
        return kept

    def _claimed(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return those that should be written, in the order of their chains."""
        if self._disk is None:
            return []
        wanted = [entry for entry in entries if self._disk.claim(entry.key)]
        return [entry for run in chains.in_runs(wanted) for entry in run]

    def _write_later(self, entries: Sequence[Entry]) -> None:
        assert self._disk is not None, "blocks are claimed for a disk"
        write = partial(self._write_leaving, self._disk, entries, self._disk.generation)
        if self._lane.submit(write, len(entries), urgent=False):
            self._leaving += len(entries)
            return
        self._disk.give_up([entry.key for entry in entries])
        self._count_lost(self._host.retire(entries))

    def _count_lost(self, gone: Sequence[Entry]) -> None:
        if self._disk is not None and not self._disk.off:
            lost = sum(entry.key not in self._disk.cache for entry in gone)
            self._host.counters.lost += lost

    # What follows runs in the lane, without the lock.

    def _write_leaving(self, disk: DiskTier, entries: Sequence[Entry], generation: int) -> None:
        try:
            disk.write(entries, self._host.rows, generation)
        finally:
            with self._lock:
                self._leaving -= len(entries)
                self._host.retire(entries)
                self._lock.notify_all()

    def _write_pinned(self, disk: DiskTier, entries: Sequence[Entry], generation: int) -> None:
        try:
            disk.write(entries, self._host.rows, generation)
        finally:
            with self._lock:
                self._unpin(entries)

    def _unpin(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._host.cache.unpin(entry)
        self._lock.notify_all()
