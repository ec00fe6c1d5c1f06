"""Our hashes for the blocks of a worker that has others, from the tokens in its events."""

from collections.abc import Sequence

from stafette.kvtransfer.blocks import ROOT, BlockHasher, Extras
from stafette.kvtransfer.events import BlockRemoved, BlockStored
from stafette.router.table import tier_bit


class ForeignHashes:
    """Remembers, for what one worker holds, which of our hashes stands for which of its own."""

    def __init__(self, hasher: BlockHasher) -> None:
        self._hasher = hasher
        self._ours: dict[bytes, tuple[bytes, int]] = {}  # its hash -> our hash, tiers

    def __len__(self) -> int:
        return len(self._ours)

    def clear(self) -> None:
        self._ours.clear()

    def store(self, event: BlockStored) -> tuple[bytes, ...] | None:
        """Return our hashes of the blocks, or None when nobody told how their chain begins.

        Events of a slower tier may come without tokens: of blocks that were told before.
        """
        if not event.token_ids:
            known = [theirs for theirs in event.hashes if theirs in self._ours]
            ours = tuple(self._ours[theirs][0] for theirs in known)
            self._note(known, ours, tier_bit(event.tier))
            return ours or None
        parent = ROOT if event.parent is None else self._ours.get(event.parent, (None, 0))[0]
        if parent is None:
            return None
        ours = tuple(self._hasher.hash_blocks(event.token_ids, parent, Extras(lora=event.lora)))
        self._note(event.hashes, ours, tier_bit(event.tier))
        return ours

    def remove(self, event: BlockRemoved) -> tuple[bytes, ...]:
        """Return our hashes of those blocks that are known."""
        gone, hashes = tier_bit(event.tier), []
        for theirs in event.hashes:
            ours, tiers = self._ours.get(theirs, (b"", 0))
            if not tiers & gone:
                continue
            hashes.append(ours)
            if tiers & ~gone:
                self._ours[theirs] = (ours, tiers & ~gone)
            else:
                del self._ours[theirs]
        return tuple(hashes)

    def _note(self, theirs: Sequence[bytes], ours: Sequence[bytes], tier: int) -> None:
        for foreign, own in zip(theirs, ours, strict=True):
            self._ours[foreign] = (own, self._ours.get(foreign, (own, 0))[1] | tier)
