"""Keeps what a worker has told of its cache, so that a reader who missed some can catch up."""

import time
from collections import deque
from collections.abc import Callable

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
        self._tiers: dict[bytes, set[Tier]] = {}
        self._parents: dict[bytes, bytes | None] = {}

    def __len__(self) -> int:
        return len(self._tiers)

    def on(self, tier: Tier) -> set[bytes]:
        """Return the hashes of the blocks on one tier."""
        return {block_hash for block_hash, tiers in self._tiers.items() if tier in tiers}

    def apply(self, event: KvEvent) -> None:
        match event:
            case BlockStored():
                self._store(event)
            case BlockRemoved():
                self._remove(event)
            case AllCleared():
                self._tiers.clear()
                self._parents.clear()

    def events(self) -> tuple[KvEvent, ...]:
        """Return events that bring an empty reader to this state; runs of one chain are one."""
        runs: list[tuple[bytes | None, Tier, list[bytes]]] = []
        open_runs: dict[tuple[bytes | None, Tier], list[bytes]] = {}  # last hash -> its run
        for block_hash, tiers in self._tiers.items():
            parent = self._parents[block_hash]
            for tier in sorted(tiers):
                run = open_runs.pop((parent, tier), None) if parent is not None else None
                if run is None:
                    run = []
                    runs.append((parent, tier, run))
                run.append(block_hash)
                open_runs[block_hash, tier] = run
        return tuple(BlockStored(parent, tuple(run), tier) for parent, tier, run in runs)

    def _store(self, event: BlockStored) -> None:
        parent = event.parent
        for block_hash in event.hashes:
            self._tiers.setdefault(block_hash, set()).add(event.tier)
            self._parents[block_hash] = parent
            parent = block_hash

    def _remove(self, event: BlockRemoved) -> None:
        for block_hash in event.hashes:
            tiers = self._tiers.get(block_hash)
            if tiers is None:
                continue
            tiers.discard(event.tier) if event.tier is not None else tiers.clear()
            if not tiers:
                del self._tiers[block_hash], self._parents[block_hash]


class EventLog:
    """Numbers a worker's events, remembers the latest batches, and knows the sum of them all."""

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
        self._clock = clock
        self._ring: deque[EventBatch] = deque(maxlen=capacity)
        self.last_seq = 0  # of the newest batch; the first is 1
        self._pending: list[KvEvent] = []
        self._cached = CachedBlocks()

    def add(self, event: KvEvent) -> None:
        """Note an event for the next batch."""
        self._pending.append(event)

    def flush(self) -> EventBatch | None:
        """Return the events since the last call as a batch, or None when nothing happened."""
        if not self._pending:
            return None
        self.last_seq += 1
        batch = self._batch(self.last_seq, tuple(self._pending))
        self._pending.clear()
        self._ring.append(batch)
        for event in batch.events:
            self._cached.apply(event)
        return batch

    def since(self, seq: int) -> list[EventBatch]:
        """Return the batches after number `seq`, or a snapshot when they are not all there."""
        missing = self.last_seq - seq
        if 0 <= missing <= len(self._ring):
            return list(self._ring)[len(self._ring) - missing :]
        return [self.snapshot()]

    def snapshot(self) -> EventBatch:
        """Return all that is cached, as of the newest batch."""
        return self._batch(self.last_seq, self._cached.events(), snapshot=True)

    def _batch(self, seq: int, events: tuple[KvEvent, ...], snapshot: bool = False) -> EventBatch:
        now = self._clock()
        return EventBatch(self.worker_id, self.epoch, seq, now, events, snapshot)
