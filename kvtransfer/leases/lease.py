"""A lease as its holder sees it: what it covers, and how long it lasts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np

from stafette.kvtransfer.errors import LeaseEnded, MalformedMessage
from stafette.kvtransfer.leases.held import HeldLease, Use
from stafette.kvtransfer.regions import RegionInfo
from stafette.kvtransfer.strict import number, whole
from stafette.kvtransfer.transport import Grant

_SLOT_END = 1 << 32


@dataclass(frozen=True, slots=True)
class Opened:
    """What an owner answers to whoever takes up a lease."""

    grant: Grant
    use: Use
    ttl_s: float
    remaining_s: float


class Lease:
    """Held by this process. `release` it when its blocks are not needed any more."""

    def __init__(
        self,
        owner: str,
        opened: Opened,
        asked_at: float,
        release: Callable[["Lease"], None],
    ) -> None:
        self.owner = owner
        self.grant = opened.grant
        self.use = opened.use
        self.ttl_s = opened.ttl_s
        self.expires = asked_at + opened.remaining_s  # of our clock, not later than the owner's
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
    """Return the wire form of `Opened`."""
    region, terms = lease.region.info.pack(), lease.terms
    blocks = np.ascontiguousarray(lease.blocks, "<i8").tobytes()
    generations = np.ascontiguousarray(lease.generations, "<u8").tobytes()
    return [lease.slot, region, blocks, generations, terms.use, terms.ttl_s, remaining_s]


def read_opened(value: object, lease_id: int, epoch: int) -> Opened:
    match value:
        case [slot, region, bytes(blocks), bytes(generations), use, ttl_s, remaining_s]:
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
            return Opened(grant, _use(use), number(ttl_s, "ttl"), number(remaining_s, "rest"))
    raise MalformedMessage("lease", "[slot, region, blocks, generations, use, ttl, rest]")


def _use(value: object) -> Use:
    if value not in get_args(Use):
        raise MalformedMessage("use", " | ".join(get_args(Use)))
    return value  # type: ignore[return-value]
