"""Serves requests for blocks: what is on the host is copied, what is below is loaded first."""

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import partial

from stafette.kvtransfer.tiers.cache import Entry
from stafette.kvtransfer.tiers.job import Outcome
from stafette.kvtransfer.tiers.loading import Arrival, Load, Loader, Request
from stafette.kvtransfer.tiers.machinery import Lanes
from stafette.kvtransfer.tiers.shared import Shared
from stafette.kvtransfer.tiers.source import BlockSource

_log = logging.getLogger(__name__)

Hits = Sequence[tuple[int, Entry]]  # places in a request, and their blocks on the host, pinned


class Onboarder:
    """`lanes` are the disk's and the peers'."""

    def __init__(
        self, shared: Shared, source: BlockSource | None, lanes: tuple[Lanes, Lanes]
    ) -> None:
        self._shared = shared
        self._preheats = lanes[0 if source is None else 1]
        self.loader = Loader(shared, source, lanes, self._deliver)

    def start(self, request: Request, located: Collection[bytes]) -> None:
        """Bring a chain to the device, as far as it is found."""
        length = len(request.parents)
        with self._shared.lock:
            hits, loads, end = self._sort(request, range(length), located)
        request.job.settle(range(end, length), Outcome.MISSING)
        self._copy(request, hits)
        self.loader.queue(loads)

    def preheat(self, request: Request, located: Collection[bytes]) -> None:
        """Bring a chain to the host, a batch at a time, while nothing urgent waits."""
        self._preheat_from(0, request, located, len(request.parents))

    def _preheat_from(
        self, first: int, request: Request, located: Collection[bytes], num_blocks: int
    ) -> None:
        work = partial(self._preheat_batch, first, request, located)
        if not self._preheats.submit(work, num_blocks, urgent=False):
            request.job.settle(range(first, len(request.parents)), Outcome.DROPPED)

    def _preheat_batch(self, first: int, request: Request, located: Collection[bytes]) -> None:
        length, shared = len(request.parents), self._shared
        batch = range(first, min(first + shared.batch, length))
        with shared.lock:
            hits, loads, end = self._sort(request, batch, located)
        request.job.settle([index for index, _ in hits], Outcome.PRESENT)
        self.loader.load([load for load in loads if load.place is not None])
        self.loader.load([load for load in loads if load.place is None])
        if end < batch.stop:
            request.job.settle(range(end, length), Outcome.MISSING)
        elif end < length and not request.job.done:
            self._preheat_from(end, request, located, num_blocks=0)

    def _sort(
        self, request: Request, places: range, located: Collection[bytes]
    ) -> tuple[list[tuple[int, Entry]], list[Load], int]:
        """Return what is on the host, what must be loaded, and where the chain ends."""
        hits: list[tuple[int, Entry]] = []
        loads: list[Load] = []
        for index in places:
            entry = self._shared.host.cache.get(request.job.hashes[index])
            load = None if entry else self.loader.join(request, index, located)
            if entry is not None:
                hits.append((index, entry))
            elif load is None:
                return hits, loads, index
            elif len(load.waiters) == 1:  # nobody else has asked for it before
                loads.append(load)
            if request.slots is not None:
                self._count(entry, load)
        return hits, loads, places.stop

    def _count(self, entry: Entry | None, load: Load | None) -> None:
        """Note a hit, and keep a block on the host until it is copied."""
        if entry is not None:
            self._shared.host.counters.hits += 1
            self._shared.host.cache.pin(entry.key)
        elif load is not None:
            self.loader.counters_of(load).hits += 1

    def _deliver(self, arrivals: Sequence[Arrival]) -> None:
        ready: defaultdict[Request, list[tuple[int, Entry]]] = defaultdict(list)
        for arrival in arrivals:
            for request, index in arrival.waiters:
                if arrival.entry is not None and request.slots is not None:
                    ready[request].append((index, arrival.entry))
                else:
                    self._end(request, [index], arrival.outcome)
        for request, hits in ready.items():
            self._copy(request, hits)

    def _copy(self, request: Request, hits: Hits) -> None:
        for batch in self._shared.batches(hits):
            work = partial(self._copy_in, request, batch)
            if not self._shared.copies.submit(work, len(batch), urgent=True):
                self._shared.unpin([entry for _, entry in batch])
                self._end(request, [index for index, _ in batch], Outcome.DROPPED)

    def _copy_in(self, request: Request, hits: Hits) -> None:
        entries = dict(hits)
        claimed = request.job.claim(list(entries))
        outcome, began = Outcome.FAILED, time.monotonic()
        try:
            if claimed and request.slots is not None:
                slots = [request.slots[index] for index in claimed]
                rows = [entries[index].slot for index in claimed]
                self._shared.device.copy_in(slots, self._shared.host.rows, rows)
            outcome = Outcome.DONE
        except Exception:  # the engine's code, or the device
            _log.exception("%d blocks could not be copied to the device", len(claimed))
        finally:
            self._shared.unpin([entry for _, entry in hits])
            self._note_copy(len(claimed), outcome, time.monotonic() - began)
            self._end(request, claimed, outcome)

    def _note_copy(self, num_blocks: int, outcome: Outcome, seconds: float) -> None:
        host = self._shared.host
        with self._shared.lock:
            host.counters.errors += outcome is not Outcome.DONE
            if outcome is Outcome.DONE and num_blocks:
                host.counters.read_bytes += num_blocks * host.block_bytes
                host.counters.read_s += seconds

    def _end(self, request: Request, indices: Sequence[int], outcome: Outcome) -> None:
        settled = request.job.settle(indices, outcome)
        if outcome is Outcome.DONE:
            with self._shared.lock:
                if request.slots is None:
                    self._shared.calls.preheated += settled
                else:
                    self._shared.calls.onboarded += settled
