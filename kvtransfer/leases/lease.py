"""A lease as its holder sees it: what it covers, and how long it lasts."""

from collections.abc import Callable

import numpy as np

from stafette.kvtransfer.errors import LeaseEnded, MalformedMessage
from stafette.kvtransfer.leases.held import HeldLease
from stafette.kvtransfer.regions import RegionInfo
from stafette.kvtransfer.strict import number, whole
from stafette.kvtransfer.transport import Grant

_SLOT_END = 1 << 32


class Lease:
    """Held by this process. `release` it when its blocks are not needed any more."""

    def __init__(
        self,
        owner: str,
        grant: Grant,
        ttl_s: float,
        expires: float,
        release: Callable[["Lease"], None],
    ) -> None:
        self.owner = owner
        self.grant = grant
        self.ttl_s = ttl_s
        self.expires = expires  # of our clock; the owner's is never compared with it
        self._release = release
        self._ended: LeaseEnded | None = None

    @property
    def id(self) -> int:
        return self.grant.lease_id

    @property
    def region(self) -> RegionInfo:
        return self.grant.region

    @property
    def ended(self) -> LeaseEnded | None:
        """Why nothing can be read under it any more, as far as this side knows."""
        return self._ended

    def release(self) -> None:
        """Give it back, soon and at most once; the owner may overwrite the blocks then."""
        if self._ended is None:
            self.end("it was released here")
            self._release(self)

    def end(self, reason: str) -> None:
        if self._ended is None:
            self._ended = LeaseEnded(self.id, reason)


def pack_opened(lease: HeldLease, remaining_s: float) -> list[object]:
    """Return what an owner tells the holder of a lease."""
    region = lease.region.info.pack()
    blocks = np.ascontiguousarray(lease.blocks, "<i8").tobytes()
    generations = np.ascontiguousarray(lease.generations, "<u8").tobytes()
    return [lease.slot, region, blocks, generations, lease.terms.ttl_s, remaining_s]


def read_opened(value: object, lease_id: int, epoch: int) -> tuple[Grant, float, float]:
    """Return the grant, its ttl and the time it has left."""
    match value:
        case [slot, region, bytes(blocks), bytes(generations), ttl_s, remaining_s]:
            if len(blocks) != len(generations) or len(blocks) % 8 or not blocks:
                raise MalformedMessage("lease", "a generation for every block")
            grant = Grant(
                lease_id,
                epoch,
                whole(slot, "slot", _SLOT_END),
                RegionInfo.read(region),
                np.frombuffer(blocks, "<i8").astype(np.int64, copy=False),
                np.frombuffer(generations, "<u8").astype(np.uint64, copy=False),
            )
            return grant, number(ttl_s, "ttl"), number(remaining_s, "remaining time")
    raise MalformedMessage("lease", "[slot, region, blocks, generations, ttl, remaining time]")
