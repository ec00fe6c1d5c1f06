"""Takes blocks down: out of device slots into the host's."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from stafette.kvtransfer.tiers.cache import Entry
from stafette.kvtransfer.tiers.job import BlockJob, Outcome
from stafette.kvtransfer.tiers.shared import Shared

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Offer:
    job: BlockJob
    parents: Sequence[bytes]
    slots: Sequence[int]  # of the device
    generation: int
    full: bool = False  # there was no room: the rest must not push out its own beginning


class Offloader:
    def __init__(self, shared: Shared, patience_s: float) -> None:
        self._shared = shared
        self._patience_s = patience_s
        self._coming: set[bytes] = set()  # under way

    def start(self, offer: Offer) -> None:
        """Queue what is not on the host. What finds no place is dropped, from the chain's end."""
        present, fresh = self._sort(offer)
        self._end(offer, present, Outcome.PRESENT)
        for batch in self._shared.batches(fresh):
            work = partial(self._move, offer, batch)
            if not self._shared.copies.submit(work, len(batch), urgent=False):
                self._withdraw(offer, batch)
                self._end(offer, batch, Outcome.DROPPED)

    def forget(self) -> None:
        """What is under way is of no use any more. Wants the lock."""
        self._coming.clear()

    def _sort(self, offer: Offer) -> tuple[list[int], list[int]]:
        present, fresh = [], []
        with self._shared.lock:
            for index, key in enumerate(offer.job.hashes):
                if key in self._shared.host.cache or key in self._coming:
                    present.append(index)
                else:
                    self._coming.add(key)
                    fresh.append(index)
        return present, fresh

    def _move(self, offer: Offer, batch: Sequence[int]) -> None:
        claimed = offer.job.claim(batch)
        try:
            rows = self._take_rows(offer, claimed) if claimed and not offer.full else []
            kept, over = claimed[: len(rows)], claimed[len(rows) :]
            offer.full |= bool(over)
            self._end(offer, over, Outcome.DROPPED)
            self._end(offer, kept, self._copy(offer, kept, rows))
        finally:  # should one of these fail, nobody waits for it for ever
            self._withdraw(offer, batch)
            self._end(offer, claimed, Outcome.FAILED)

    def _take_rows(self, offer: Offer, indices: Sequence[int]) -> list[int]:
        shared, parent = self._shared, offer.parents[indices[0]]
        with shared.lock:
            # The parent must not go to make room for its child.
            held = shared.host.cache.pin(parent) if parent in shared.host.cache else None
            rows = shared.demoter.take(len(indices), self._patience())
            if held is not None:
                shared.host.cache.unpin(held)
        return rows

    def _patience(self) -> float:
        """While few blocks wait to be offloaded, there is time for those that make room."""
        copies = self._shared.copies
        return self._patience_s if copies.num_waiting[1] * 2 < copies.limits[1] else 0.0

    def _copy(self, offer: Offer, indices: Sequence[int], rows: Sequence[int]) -> Outcome:
        shared = self._shared
        began = time.monotonic()
        try:
            shared.overwrite(rows)
            shared.device.copy_out([offer.slots[i] for i in indices], shared.host.rows, rows)
        except Exception:  # the engine's code, or the device
            _log.exception("%d blocks could not be copied from the device", len(rows))
            with shared.lock:
                shared.host.counters.errors += 1
                shared.host.cache.give_back(rows)
            return Outcome.FAILED
        return self._keep(offer, indices, rows, time.monotonic() - began)

    def _keep(
        self, offer: Offer, indices: Sequence[int], rows: Sequence[int], seconds: float
    ) -> Outcome:
        shared, host = self._shared, self._shared.host
        entries = [
            Entry(offer.job.hashes[i], offer.parents[i], row)
            for i, row in zip(indices, rows, strict=True)
        ]
        with shared.lock:
            if offer.generation != shared.generation:
                host.cache.give_back(rows)
                return Outcome.CANCELLED
            double = [entry for entry in entries if entry.key in host.cache]  # loaded meanwhile
            host.cache.give_back(entry.slot for entry in double)
            new = [entry for entry in entries if entry.key not in host.cache]
            host.store(new)
            host.counters.written_bytes += len(entries) * host.block_bytes
            host.counters.written_s += seconds
            shared.demoter.write_early(new)
        return Outcome.DONE

    def _withdraw(self, offer: Offer, indices: Sequence[int]) -> None:
        with self._shared.lock:
            self._coming.difference_update(offer.job.hashes[i] for i in indices)

    def _end(self, offer: Offer, indices: Sequence[int], outcome: Outcome) -> None:
        settled = offer.job.settle(indices, outcome)
        calls = self._shared.calls
        with self._shared.lock:
            calls.offloaded += settled * (outcome is Outcome.DONE)
            calls.already_there += settled * (outcome is Outcome.PRESENT)
            calls.offloads_dropped += settled * (outcome is Outcome.DROPPED)
