"""A lease as its owner holds it, and the reasons for which it ends."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import numpy as np
import numpy.typing as npt

from stafette.kvtransfer.errors import AccessDenied, StaleBlocks
from stafette.kvtransfer.extents import Extents, Uint64s
from stafette.kvtransfer.regions import LocalRegion

Int64s = npt.NDArray[np.int64]
Use = Literal["read", "fill"]


class EndReason(Enum):
    RELEASED = "its holder released it"
    REJECTED = "its holder did not want it"
    EXPIRED = "it expired: its holder sent no heartbeat in time"
    OUTLIVED = "it reached the longest life that leases have here"
    REVOKED = "its owner took it back"
    REGION_GONE = "its region was deregistered"
    HOLDER_GONE = "its holder has restarted"
    CLOSED = "its owner was closed"


@dataclass(frozen=True, slots=True)
class Terms:
    """What an owner says when it grants a lease."""

    use: Use
    ttl_s: float
    holder: str = ""  # the only peer that may use it; empty: the first that comes with the ticket
    on_ended: Callable[[EndReason], None] | None = None  # from then on the blocks are free


@dataclass(slots=True, eq=False)
class HeldLease:
    id: int
    slot: int  # in the ledger
    region: LocalRegion
    blocks: Int64s  # ascending, each once
    generations: Uint64s  # of these blocks when the lease began
    terms: Terms
    holder: str
    holder_epoch: int  # 0: nobody has opened it yet
    expires: float
    dies: float  # the hard end
    claims: int = 0  # accesses under way
    ending: EndReason | None = None
    on_ending: list[Callable[[], None]] = field(default_factory=list)  # end what is under way

    def places(self, name: str, extents: Extents) -> Int64s:
        """Return where in `blocks` those of the extents are; AccessDenied when some are not."""
        info = self.region.info
        if extents.region != info.name:
            reason = f"the lease is for region {info.name}"
            raise AccessDenied(name, f"region {extents.region}", reason)
        if not extents.within(info.nbytes):
            reason = f"the region has {info.nbytes} bytes"
            raise AccessDenied(name, f"bytes beyond {info.name}", reason)
        asked = extents.blocks(info.block_bytes)
        first, last = int(self.blocks[0]), int(self.blocks[-1])
        if last - first + 1 == len(self.blocks) and len(asked):  # one run: no search is needed
            if first <= asked[0] and asked[-1] <= last:
                run: Int64s = asked - first
                return run
        places = np.searchsorted(self.blocks, asked)
        known = self.blocks[np.minimum(places, len(self.blocks) - 1)] == asked
        if not known.all():
            outside = int(asked[~known][0])
            reason = "the lease does not cover it"
            raise AccessDenied(name, f"block {outside} of {info.name}", reason)
        return places

    def check_generations(self, name: str, places: Int64s, now: Uint64s) -> None:
        """Raise StaleBlocks for blocks that were overwritten since the lease began."""
        blocks = self.blocks[places]
        changed = now[blocks] != self.generations[places]
        if changed.any():
            raise StaleBlocks(name, self.region.name, tuple(blocks[changed].tolist()))
