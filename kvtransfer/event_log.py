"""Keeps what a worker has told of its cache, so that a reader who missed some can catch up."""

import time
from collections import deque
from collections.abc import Callable
from threading import Lock

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.events import (
    AllCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    KvEvent,
    Tier,
)


class CachedBlocks:
    """What is cached, and on which tiers, as the events tell it."""

    def __init__(self) -> None:
        self._parents: dict[bytes, bytes | None] = {}  # of a block, the same on every tier
        self._tiers: dict[Tier, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._parents)

    def on(self, tier: Tier) -> set[bytes]:
        """Return the hashes of the blocks on one tier."""
        return set(self._tiers.get(tier, ()))

    def copy(self) -> "CachedBlocks":
        twin = CachedBlocks()
        twin._parents = self._parents.copy()
        twin._tiers = {tier: blocks.copy() for tier, blocks in self._tiers.items()}
        return twin

    def apply(self, event: KvEvent) -> None:
        match event:
            case BlockStored():
                parents = (event.parent, *event.hashes)
                self._parents.update(zip(event.hashes, parents, strict=False))
                self._tiers.setdefault(event.tier, set()).update(event.hashes)
            case BlockRemoved():
                self._remove(event)
            case AllCleared():
                self._parents.clear()
                self._tiers.clear()

    def events(self) -> tuple[KvEvent, ...]:
        """Return events that bring an empty reader to this state; runs of one chain are one."""
        return tuple(
            BlockStored(parent, tuple(run), tier)
            for tier in sorted(self._tiers)
            for parent, run in self._runs(self._tiers[tier])
        )

    def _runs(self, blocks: set[bytes]) -> list[tuple[bytes | None, list[bytes]]]:
        """Return (parent of the first, blocks) of each run of one chain, parents first."""
        runs: list[tuple[bytes | None, list[bytes]]] = []
        open_runs: dict[bytes | None, list[bytes]] = {}  # last hash -> its run
        for block_hash, parent in self._parents.items():
            if block_hash not in blocks:
                continue
            run = open_runs.pop(parent, None)
            if run is None:
                run = []
                runs.append((parent, run))
            run.append(block_hash)
            open_runs[block_hash] = run
        return runs

    def _remove(self, event: BlockRemoved) -> None:
        tiers = self._tiers.values() if event.tier is None else [self._tiers.get(event.tier, set())]
        for blocks in tiers:
            blocks.difference_update(event.hashes)
        for block_hash in set(event.hashes).difference(*self._tiers.values()):
            self._parents.pop(block_hash, None)


class EventLog:
    """Numbers a worker's events, remembers the latest batches, and knows the sum of them all.

    Any thread may call it. None waits for long: while a snapshot is made, only a copy of the books
    is taken under the lock.
    """

    def __init__(
        self,
        worker_id: str,
        epoch: int,
        capacity: int = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if capacity < 1:
            raise InvalidValue("capacity", capacity, "must be at least 1 batch")
        self.worker_id = worker_id
        self.epoch = epoch
        self.capacity = capacity
        self.last_seq = 0  # of the newest batch; the first is 1
        self._clock = clock
        self._lock = Lock()
        self._ring: deque[EventBatch] = deque(maxlen=capacity)
        self._pending: list[KvEvent] = []
        self._cached = CachedBlocks()

    def add(self, event: KvEvent) -> None:
        """Note an event for the next batch."""
        with self._lock:
            self._pending.append(event)

    def flush(self) -> EventBatch | None:
        """Return the events since the last call as a batch, or None when nothing happened."""
        with self._lock:
            if not self._pending:
                return None
            events, self._pending = tuple(self._pending), []
            for event in events:
                self._cached.apply(event)
            return self._append(events)

    def beat(self) -> EventBatch:
        """Return an empty batch: a sign of life, whose number shows if the one before was lost."""
        with self._lock:
            return self._append(())

    def since(self, seq: int) -> list[EventBatch]:
        """Return the batches after number `seq`, or a snapshot when they are not all there."""
        with self._lock:
            missing = self.last_seq - seq
            if 0 <= missing <= len(self._ring):
                return list(self._ring)[len(self._ring) - missing :]
        return [self.snapshot()]

    def snapshot(self) -> EventBatch:
        """Return all that is cached, as of the newest batch."""
        with self._lock:
            seq, cached = self.last_seq, self._cached.copy()
        return self._batch(seq, cached.events(), snapshot=True)

    def _append(self, events: tuple[KvEvent, ...]) -> EventBatch:
        self.last_seq += 1
        batch = self._batch(self.last_seq, events)
        self._ring.append(batch)
        return batch

    def _batch(self, seq: int, events: tuple[KvEvent, ...], snapshot: bool = False) -> EventBatch:
        now = self._clock()
        return EventBatch(self.worker_id, self.epoch, seq, now, events, snapshot)
