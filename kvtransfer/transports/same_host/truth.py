"""What the owner of a region promised with a lease, beside what its ledger says now."""

import numpy as np
import numpy.typing as npt

from stafette.kvtransfer.errors import AccessDenied, LeaseEnded, StaleBlocks, StaleEpoch
from stafette.kvtransfer.extents import Extents, Uint64s
from stafette.kvtransfer.ledger import LedgerView
from stafette.kvtransfer.memory import map_to_read
from stafette.kvtransfer.transport import Grant

_WORD_BYTES = 8


class Truth:
    """A peer's ledger, and its counts of the blocks of one region, as they are now.

    They stay readable when the peer dies. Whoever is killed strikes nothing out any more, and does
    not overwrite anything either: what its memory holds then is what it promised.
    """

    def __init__(self, ledger_fd: int, ledger_bytes: int, counts_fd: int, num_blocks: int) -> None:
        self.ledger = LedgerView(ledger_fd, ledger_bytes)
        counts = map_to_read(counts_fd, (num_blocks + 1) * _WORD_BYTES).view(np.uint64)
        self.generations: Uint64s = counts[:-1]
        self._gone = counts[-1:]
        self._places = self.ledger.epoch_address, self.ledger.slot_address(0), address(counts)

    @property
    def gone(self) -> bool:
        """Whether the region was deregistered."""
        return bool(self._gone[0])

    def words(self, grant: Grant) -> tuple[int, ...]:
        """Return what native code needs to look at a promise."""
        if not 0 <= grant.slot < self.ledger.num_slots:
            raise LeaseEnded(grant.lease_id, "its place is none of the owner's ledger")
        epoch, slots, generations = self._places
        return (
            epoch,
            grant.epoch,
            slots + grant.slot * _WORD_BYTES,
            grant.lease_id,
            generations,
            len(self.generations),
            address(grant.blocks),
            address(grant.generations),
            len(grant.blocks),
            grant.region.block_bytes,
        )

    def check(self, peer: str, grant: Grant, source: Extents) -> None:
        """Raise what is wrong with a promise about some ranges, if anything is."""
        self.check_lease(peer, grant)
        blocks = source.blocks(grant.region.block_bytes)
        places = np.searchsorted(grant.blocks, blocks)
        known = grant.blocks[np.minimum(places, len(grant.blocks) - 1)] == blocks
        outside = blocks[~known | (blocks >= len(self.generations))]
        if len(outside):
            asked = f"block {int(outside[0])} of {grant.region.name}"
            raise AccessDenied(peer, asked, "the lease does not cover it")
        changed = blocks[self.generations[blocks] != grant.generations[places]]
        if len(changed):
            raise StaleBlocks(peer, grant.region.name, tuple(changed.tolist()))

    def check_lease(self, peer: str, grant: Grant) -> None:
        if self.ledger.epoch != grant.epoch:
            raise StaleEpoch(peer, grant.epoch, self.ledger.epoch)
        held = 0 <= grant.slot < self.ledger.num_slots
        if not held or not self.ledger.holds(grant.slot, grant.lease_id):
            raise LeaseEnded(grant.lease_id, "its owner has struck it out")


def address(array: npt.NDArray[np.generic]) -> int:
    """Return where an array begins; quicker than `array.ctypes.data`."""
    place: int = array.__array_interface__["data"][0]
    return place
