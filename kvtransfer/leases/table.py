"""The owner's books of its leases: grants, heartbeats, claims and every way to an end.

A lease that ends is struck out of the ledger first, then its blocks are given back: a reader on
this host who looks at the ledger after its copy knows whether they can have changed. While a fill
is writing into the blocks, the end waits for it.
"""

import heapq
import logging
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stafette.kvtransfer.errors import AccessDenied, InvalidValue, LeaseEnded
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.kvtransfer.leases.held import EndReason, HeldLease, Int64s, Terms, Use
from stafette.kvtransfer.leases.ticket import LEASE_ID_END
from stafette.kvtransfer.ledger import Ledger
from stafette.kvtransfer.regions import LocalRegion
from stafette.kvtransfer.transport import Claim

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class LeaseCounters:
    granted: int = 0
    heartbeats: int = 0
    living: int = 0
    ended: Counter[EndReason] = field(default_factory=Counter)
    refused: int = 0  # accesses under a lease that had ended, or beyond what it covers


class LeaseTable:
    """Any thread may call it. Callbacks run outside of its lock."""

    def __init__(
        self, name: str, ledger: Ledger, config: LeaseConfig, clock: Callable[[], float]
    ) -> None:
        self._name = name
        self._ledger = ledger
        self._config = config
        self._clock = clock
        self._leases: dict[int, HeldLease] = {}
        self._free_slots = list(range(ledger.num_slots - 1, -1, -1))
        self._due: list[tuple[float, int]] = []  # a heap; heartbeats make entries obsolete
        self._counters = LeaseCounters()
        self._closed = False
        self._lock = threading.Lock()

    @property
    def longest_s(self) -> float:
        """The longest time that a lease may be granted for."""
        return self._config.max_life_s

    def grant(self, region: LocalRegion, blocks: Sequence[int] | Int64s, terms: Terms) -> HeldLease:
        """Lease blocks of a region; nobody overwrites them before `terms.on_ended`."""
        numbers = _checked(region, blocks)
        if not 0 < terms.ttl_s <= self._config.max_life_s:
            remedy = f"must be above 0 and at most {self._config.max_life_s:g}, lease.max_life_s"
            raise InvalidValue("ttl_s", terms.ttl_s, remedy)
        with self._lock:
            if self._closed or not self._free_slots:
                remedy = (
                    "release some, or raise lease.max_leases"
                    if not self._closed
                    else "closed: make another agent"
                )
                raise InvalidValue("leases", len(self._leases), remedy)
            return self._enter(region, numbers, terms)

    def open(self, peer: str, epoch: int, lease_id: int) -> tuple[HeldLease, float]:
        """Return the lease, now that peer's, and the time it has left."""
        with self._lock:
            lease = self._living(peer, lease_id)
            lease.holder, lease.holder_epoch = peer, epoch
            return lease, lease.expires - self._clock()

    def renew(self, peer: str, lease_ids: Sequence[int]) -> list[float]:
        """Take a heartbeat; return the time that each lease has left, 0 when it has ended."""
        with self._lock:
            return [self._renew(peer, lease_id) for lease_id in lease_ids]

    def end(self, lease_id: int, reason: EndReason, peer: str | None = None) -> bool:
        """End a lease, if it lives and, when a peer asks, is that peer's."""
        with self._lock:
            lease = self._leases.get(lease_id)
            if lease is None or (peer is not None and lease.holder not in ("", peer)):
                return False
            calls = self._begin_end(lease, reason)
        _run(calls)
        return True

    def end_all(self, reason: EndReason, which: Callable[[HeldLease], bool]) -> None:
        with self._lock:
            chosen = [lease for lease in self._leases.values() if which(lease)]
            calls = [call for lease in chosen for call in self._begin_end(lease, reason)]
        _run(calls)

    def expire(self) -> float | None:
        """End what is due; return when to come again, None when no lease lives."""
        now, calls = self._clock(), list[Callable[[], None]]()
        with self._lock:
            while self._due and self._due[0][0] <= now:
                lease = self._leases.get(heapq.heappop(self._due)[1])
                if lease is not None and lease.ending is None:
                    calls += self._look_at(lease, now)
            soonest = self._due[0][0] if self._due else None
        _run(calls)
        return soonest

    @contextmanager
    def claim(
        self, peer: str, lease_id: int, extents: Extents, use: Use = "read"
    ) -> Iterator["HeldClaim"]:
        """Hold a lease while it is used; it may end meanwhile, which `check` tells."""
        try:
            with self._lock:
                lease = self._living(peer, lease_id)
                if lease.terms.use != use:
                    reason = f"the lease is to {lease.terms.use} them"
                    raise AccessDenied(self._name, f"to {use} blocks", reason)
                lease.claims += 1
        except (AccessDenied, LeaseEnded):
            self._counters.refused += 1
            raise
        try:
            yield self._checked_claim(lease, extents)
        finally:
            self._give_back(lease)

    def when_ending(self, claim: Claim, call: Callable[[], None]) -> None:
        """Call when the claim's lease is to end, at once when it is already."""
        assert isinstance(claim, HeldClaim), "a claim of ours"
        with self._lock:
            if claim.lease.ending is None:
                claim.lease.on_ending.append(call)
                return
        call()

    def leased(self, region: str) -> Int64s:
        """Return the blocks of a region that must not be overwritten now."""
        with self._lock:
            held = [v.blocks for v in self._leases.values() if v.region.name == region]
        return np.unique(np.concatenate(held)) if held else np.empty(0, np.int64)

    def counters(self) -> LeaseCounters:
        with self._lock:
            now = self._counters
            return LeaseCounters(
                now.granted, now.heartbeats, len(self._leases), now.ended.copy(), now.refused
            )

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self.end_all(EndReason.CLOSED, lambda lease: True)

    def _enter(self, region: LocalRegion, blocks: Int64s, terms: Terms) -> HeldLease:
        now, info = self._clock(), region.info
        lease = HeldLease(
            id=secrets.randbelow(LEASE_ID_END - 1) + 1,
            slot=self._free_slots.pop(),
            region=region,
            blocks=blocks,
            generations=self._ledger.generations(info.name)[blocks],
            terms=terms,
            holder=terms.holder,
            holder_epoch=0,
            expires=now + terms.ttl_s,
            dies=now + self._config.max_life_s,
        )
        self._leases[lease.id] = lease
        if terms.use == "read":  # a lease to fill opens nothing to those who read the ledger
            self._ledger.write(lease.slot, lease.id)
        heapq.heappush(self._due, (lease.expires, lease.id))
        self._counters.granted += 1
        return lease

    def _living(self, peer: str, lease_id: int) -> HeldLease:
        lease = self._leases.get(lease_id)
        if lease is None:
            raise LeaseEnded(lease_id, "it was ended, or was never granted")
        if lease.ending is not None:
            raise LeaseEnded(lease_id, lease.ending.value)
        if lease.holder not in ("", peer):
            raise AccessDenied(self._name, "a lease", "it belongs to another peer")
        return lease

    def _renew(self, peer: str, lease_id: int) -> float:
        lease = self._leases.get(lease_id)
        if lease is None or lease.ending is not None or lease.holder != peer:
            return 0.0
        now = self._clock()
        wished = now + self._config.extension * lease.terms.ttl_s
        if wished > lease.expires:
            lease.expires = min(wished, lease.dies)
            heapq.heappush(self._due, (lease.expires, lease.id))
        self._counters.heartbeats += 1
        return max(0.0, lease.expires - now)

    def _look_at(self, lease: HeldLease, now: float) -> list[Callable[[], None]]:
        """An entry of the heap is due: the lease is, unless a heartbeat or a claim keeps it."""
        if now >= lease.dies:
            return self._begin_end(lease, EndReason.OUTLIVED)
        if now < lease.expires:
            return []  # its newer entry comes later
        if lease.claims:
            lease.expires = min(now + self._config.extension * lease.terms.ttl_s, lease.dies)
            heapq.heappush(self._due, (lease.expires, lease.id))
            return []
        return self._begin_end(lease, EndReason.EXPIRED)

    def _begin_end(self, lease: HeldLease, reason: EndReason) -> list[Callable[[], None]]:
        """Strike the lease out; return what to call when the lock is free."""
        if lease.ending is not None:
            return []
        lease.ending = reason
        self._ledger.strike(lease.slot)
        calls, lease.on_ending = lease.on_ending, []
        if lease.terms.use == "fill" and lease.claims:
            return calls
        return [*calls, *self._end(lease)]

    def _end(self, lease: HeldLease) -> list[Callable[[], None]]:
        reason = lease.ending
        assert reason is not None
        del self._leases[lease.id]
        self._free_slots.append(lease.slot)
        self._counters.ended[reason] += 1
        tell = lease.terms.on_ended
        return [] if tell is None else [lambda: tell(reason)]

    def _give_back(self, lease: HeldLease) -> None:
        with self._lock:
            lease.claims -= 1
            waits = lease.ending is not None and not lease.claims and lease.id in self._leases
            calls = self._end(lease) if waits else []
        _run(calls)

    def _checked_claim(self, lease: HeldLease, extents: Extents) -> "HeldClaim":
        try:
            claim = HeldClaim(self._name, self._ledger, lease, lease.places(self._name, extents))
            claim.check()
        except (AccessDenied, LeaseEnded):
            self._counters.refused += 1
            raise
        return claim


class HeldClaim(Claim):
    """What a claim gives to whoever made it."""

    def __init__(self, name: str, ledger: Ledger, lease: HeldLease, places: Int64s) -> None:
        self.region = lease.region
        self.lease = lease
        self._name = name
        self._ledger = ledger
        self._places = places

    def check(self) -> None:
        self.check_lease()
        now = self._ledger.generations(self.region.name)
        self.lease.check_generations(self._name, self._places, now)

    def words(self) -> tuple[int, ...] | None:
        """None as long as nobody has opened the lease: then whoever comes may use it."""
        lease, ledger = self.lease, self._ledger
        if not lease.holder:
            return None
        counts = ledger.generations(self.region.name)
        return (
            ledger.epoch_address,
            ledger.epoch,
            ledger.slot_address(lease.slot),
            lease.id,
            counts.ctypes.data,
            len(counts),
            lease.blocks.ctypes.data,
            lease.generations.ctypes.data,
            len(lease.blocks),
            self.region.info.block_bytes,
        )

    def check_lease(self) -> None:
        """Raise LeaseEnded when it has, whatever became of the blocks."""
        if self.lease.ending is not None:
            raise LeaseEnded(self.lease.id, self.lease.ending.value)


def _checked(region: LocalRegion, blocks: Sequence[int] | npt.NDArray[np.integer]) -> Int64s:
    numbers: Int64s = np.unique(np.asarray(blocks, np.int64))
    last = region.info.num_blocks - 1
    if not len(numbers) or int(numbers[0]) < 0 or int(numbers[-1]) > last:
        shown = (int(numbers[0]), int(numbers[-1])) if len(numbers) else ()
        raise InvalidValue("blocks", shown, f"must be some of 0..{last} of {region.name}")
    return numbers


def _run(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        try:
            call()
        except Exception:  # the owner's code: other leases must end all the same
            _log.exception("a callback for the end of a lease failed")
