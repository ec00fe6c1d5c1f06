"""Puts one worker's batches in order, without gaps, and says what is missing. Knows no socket."""

from dataclasses import dataclass
from typing import Protocol

from stafette.kvtransfer.events import EventBatch


class EventHandler(Protocol):
    """Whoever keeps the books of the workers' caches. All calls come from one thread, in order."""

    def on_batch(self, batch: EventBatch) -> None:
        """Apply the worker's next batch; a snapshot stands for all that is cached: forget first."""

    def on_reset(self, worker_id: str) -> None:
        """Forget the worker's blocks: it began a new life, or what was missed is not to be had."""

    def on_lost(self, worker_id: str) -> None:
        """Forget the worker's blocks: it is silent, or was removed."""


@dataclass(slots=True)
class Counters:
    received: int = 0  # batches that could be read, also those that were of no use
    delivered: int = 0
    snapshots: int = 0  # of those delivered
    duplicates: int = 0
    gaps: int = 0
    replays: int = 0  # asked for
    failed_replays: int = 0  # that did not bring what was missing, or did not end in time
    resets: int = 0
    lost: int = 0
    malformed: int = 0
    handler_errors: int = 0


class Follower:
    """Follows one worker from batch to batch.

    Feed it with what arrives, live or replayed, in any order. When it is `behind`, replay from
    `start` on, and say when that is over. Without `snapshots` (vLLM) it cannot recover what the
    worker's buffer no longer holds: then it resets the handler and goes on from what there is. The
    handler must not fail: `Delivery` is one that does not.
    """

    def __init__(
        self,
        worker_id: str,
        handler: EventHandler,
        counters: Counters,
        snapshots: bool = True,
        replays: bool = True,
    ) -> None:
        self.worker_id = worker_id
        self._handler = handler
        self.counters = counters
        self._snapshots = snapshots
        self._replays = replays
        self._epoch: int | None = None  # None: nothing is known
        self._seq = 0  # of the newest batch delivered
        self._gap_end = 0  # the newest number that could not be delivered,
        self._gap_epoch = 0  # of this life
        self._lenient = not replays  # the next batch may have any number

    @property
    def epoch(self) -> int | None:
        return self._epoch

    @property
    def behind(self) -> bool:
        return self._seq < self._gap_end

    @property
    def start(self) -> int:
        """The first number that is missing; 0, which no batch has, for all of it."""
        return 0 if self._epoch is None else self._seq + 1

    def take(self, batch: EventBatch, room: bool = True) -> None:
        """Deliver the batch if it is the next one; without room for it, it counts as missing."""
        self.counters.received += 1
        if self._epoch not in (None, batch.epoch):
            self.reset()
        if batch.epoch != self._gap_epoch:  # what a life that is over still lacked is of no matter
            self._gap_end, self._gap_epoch = 0, batch.epoch
        if batch.seq <= self._seq and not self._renews(batch):
            self.counters.duplicates += 1
        elif room and (batch.snapshot or batch.seq == self._seq + 1):
            self._deliver(batch)
        elif room and self._lenient:
            self.reset()
            self._deliver(batch)
        else:
            self.counters.gaps += self._epoch is not None and not self.behind
            self._gap_end = max(self._gap_end, batch.seq)

    def begin_replay(self) -> None:
        """A worker without snapshots begins its answer with whatever it still has."""
        self.counters.replays += 1
        self._lenient = not self._snapshots

    def end_replay(self) -> None:
        """Give up what the replay did not bring."""
        self._lenient = not self._replays
        if not self.behind:
            return
        self.counters.failed_replays += 1
        self.reset()
        self._lenient = not self._snapshots

    def reset(self) -> None:
        """Forget the worker's state, and have the handler forget it."""
        if self._epoch is not None:
            self.counters.resets += 1
            self._handler.on_reset(self.worker_id)
        self._forget()

    def fail(self) -> None:
        """The handler could not take a batch in: who knows what it made of it."""
        self.counters.handler_errors += 1
        self.reset()

    def lose(self) -> None:
        """The worker is gone, as far as anyone can tell."""
        self.counters.lost += 1
        self._handler.on_lost(self.worker_id)
        self._forget()

    def _renews(self, batch: EventBatch) -> bool:
        """Tell whether this is a snapshot that is not older than what is known."""
        return batch.snapshot and (self._epoch is None or batch.seq == self._seq)

    def _deliver(self, batch: EventBatch) -> None:
        self._epoch, self._seq = batch.epoch, batch.seq
        self._lenient = not self._replays
        self.counters.delivered += 1
        self.counters.snapshots += batch.snapshot
        self._handler.on_batch(batch)

    def _forget(self) -> None:
        self._epoch, self._seq, self._gap_end = None, 0, 0
