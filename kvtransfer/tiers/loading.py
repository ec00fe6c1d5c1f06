"""Brings blocks from disk, or from a peer, to the host. What several want is loaded once."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

from stafette.kvtransfer.errors import KvTransferError
from stafette.kvtransfer.tiers.cache import Entry
from stafette.kvtransfer.tiers.job import BlockJob, Outcome
from stafette.kvtransfer.tiers.machinery import Lanes
from stafette.kvtransfer.tiers.shared import Shared
from stafette.kvtransfer.tiers.source import BlockSource
from stafette.kvtransfer.tiers.stats import Counters

_log = logging.getLogger(__name__)
_ROOM_PATIENCE_S = 1.0  # until somebody releases a slot of the host
_ROOM_PAUSE_S = 0.05  # a release may come between a look and the wait


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Blocks of one chain that somebody wants: on the device or, without slots, on the host."""

    job: BlockJob
    parents: Sequence[bytes]
    slots: Sequence[int] | None = None


@dataclass(slots=True, eq=False)
class Load:
    """A block on its way to the host, and who waits for it: requests, and the places in them."""

    key: bytes
    parent: bytes
    place: Entry | None  # on disk, pinned; None: a peer has it
    generation: int
    waiters: list[tuple[Request, int]] = field(default_factory=list)

    @property
    def wanted(self) -> bool:
        return any(request.job.waits(index) for request, index in self.waiters)


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a load ended. The block on the host is pinned once for each waiter with slots."""

    waiters: Sequence[tuple[Request, int]]
    outcome: Outcome
    entry: Entry | None


class Loader:
    """`reads` is the disk's lane, `fetches` the peers'; `deliver` takes what has arrived."""

    def __init__(
        self,
        shared: Shared,
        source: BlockSource | None,
        lanes: tuple[Lanes, Lanes],
        deliver: Callable[[Sequence[Arrival]], None],
    ) -> None:
        self.peer_counters = Counters()
        self._shared = shared
        self._source = source
        self._reads, self._fetches = lanes
        self._deliver = deliver
        self._loading: dict[bytes, Load] = {}

    # The next three want the lock.

    def join(self, request: Request, index: int, located: Collection[bytes]) -> Load | None:
        """Let a request wait for a block. Return its load, None when it is nowhere."""
        key, shared = request.job.hashes[index], self._shared
        load = self._loading.get(key)
        if load is None and shared.disk is not None and key in shared.disk.cache:
            place = shared.disk.cache.pin(key)
            load = Load(key, place.parent, place, shared.generation)
        elif load is None and key in located:
            load = Load(key, request.parents[index], None, shared.generation)
        if load is not None:
            self._loading[key] = load
            load.waiters.append((request, index))
        return load

    def forget(self) -> None:
        """Nobody may join what is under way any more."""
        self._loading.clear()

    def counters_of(self, load: Load) -> Counters:
        disk = self._shared.disk
        return self.peer_counters if load.place is None or disk is None else disk.counters

    # These do not.

    def queue(self, loads: Sequence[Load]) -> None:
        """Load in the background."""
        for lane, some in self._by_lane(loads):
            for batch in self._shared.batches(some):
                if not lane.submit(partial(self.load, batch), len(batch), urgent=True):
                    self._end_all(batch, Outcome.DROPPED)

    def load(self, loads: Sequence[Load]) -> None:
        """Load blocks that are all on disk, or all at peers, in this thread."""
        left = self._still_wanted(loads)
        while left:
            rows = self._take_rows(len(left))
            if not rows:
                break
            part, left = left[: len(rows)], left[len(rows) :]
            self._arrived(part, rows, self._fill(part, rows))
        self._end_all(left, Outcome.DROPPED)

    def _by_lane(self, loads: Sequence[Load]) -> list[tuple[Lanes, list[Load]]]:
        on_disk = [load for load in loads if load.place is not None]
        at_peers = [load for load in loads if load.place is None]
        return [(self._reads, on_disk), (self._fetches, at_peers)]

    def _still_wanted(self, loads: Sequence[Load]) -> list[Load]:
        with self._shared.lock:
            wanted = [load for load in loads if load.wanted]
            for load in loads:
                if not load.wanted:
                    self._close(load)
        return wanted

    def _take_rows(self, count: int) -> list[int]:
        """Return some slots; while everything is held, wait for a moment."""
        shared, machinery = self._shared, self._shared.machinery
        deadline = machinery.now() + _ROOM_PATIENCE_S
        while not (rows := shared.demoter.take_writing(count)) and machinery.now() < deadline:
            with shared.lock:
                machinery.wait(shared.lock, _ROOM_PAUSE_S)
        return rows

    def _fill(self, loads: Sequence[Load], rows: Sequence[int]) -> list[Outcome]:
        try:
            self._shared.overwrite(rows)
            return self._read(loads, rows) if loads[0].place else self._fetch(loads, rows)
        except Exception:
            _log.exception("%d blocks could not be loaded", len(loads))
            return [Outcome.FAILED] * len(loads)

    def _read(self, loads: Sequence[Load], rows: Sequence[int]) -> list[Outcome]:
        disk, places = self._shared.disk, [load.place for load in loads if load.place is not None]
        assert disk is not None, "these are on disk"
        return disk.read(places, self._shared.host.rows, rows)

    def _fetch(self, loads: Sequence[Load], rows: Sequence[int]) -> list[Outcome]:
        assert self._source is not None, "somebody has located these"
        counters, began = self.peer_counters, time.monotonic()
        until = max(request.job.deadline for load in loads for request, _ in load.waiters)
        try:
            keys = [load.key for load in loads]
            there = self._source.fetch(keys, rows, max(0.0, until - began))
        except KvTransferError as error:
            _log.warning("%d blocks could not be fetched: %s", len(loads), error)
            there = [False] * len(loads)
        with self._shared.lock:
            counters.errors += not any(there)
            counters.read_bytes += sum(there) * self._shared.host.block_bytes
            counters.read_s += time.monotonic() - began
        return [Outcome.DONE if arrived else Outcome.FAILED for arrived in there]

    def _arrived(
        self, loads: Sequence[Load], rows: Sequence[int], outcomes: Sequence[Outcome]
    ) -> None:
        shared, arrivals = self._shared, []
        with shared.lock:
            good = self._keep(loads, rows, outcomes)
            for load, outcome in zip(loads, outcomes, strict=True):
                entry = good.get(load.key)
                if entry is None and outcome is Outcome.DONE:
                    outcome = Outcome.CANCELLED  # it was cleared meanwhile
                for request, _ in load.waiters:
                    if entry is not None and request.slots is not None:
                        shared.host.cache.pin(entry.key)
                self._close(load)
                arrivals.append(Arrival(load.waiters, outcome, entry))
        self._deliver(arrivals)

    def _keep(
        self, loads: Sequence[Load], rows: Sequence[int], outcomes: Sequence[Outcome]
    ) -> dict[bytes, Entry]:
        """Let what has arrived be found on the host; return it."""
        host, new, found = self._shared.host, [], {}
        for load, row, outcome in zip(loads, rows, outcomes, strict=True):
            good = outcome is Outcome.DONE and load.generation == self._shared.generation
            known = host.cache.get(load.key) if good else None  # it was offloaded meanwhile
            if good and known is None:
                known = Entry(load.key, load.parent, row)
                new.append(known)
            else:
                host.cache.give_back([row])
            if known is not None:
                found[load.key] = known
        host.store(new)
        return found

    def _end_all(self, loads: Sequence[Load], outcome: Outcome) -> None:
        with self._shared.lock:
            for load in loads:
                self._close(load)
        if loads:
            self._deliver([Arrival(load.waiters, outcome, None) for load in loads])

    def _close(self, load: Load) -> None:
        """Let nobody join any more. Every load comes here once."""
        if self._loading.get(load.key) is load:
            del self._loading[load.key]
        if load.place is not None and self._shared.disk is not None:
            self._shared.disk.cache.unpin(load.place)
