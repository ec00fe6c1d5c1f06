"""What a store answers at once: where blocks are, and which of them stay."""

from collections.abc import Sequence
from dataclasses import dataclass

from stafette.kvtransfer.events import Tier
from stafette.kvtransfer.tiers.cache import Entry
from stafette.kvtransfer.tiers.shared import Shared


@dataclass(frozen=True, slots=True)
class Found:
    """Where the first blocks of a chain are, up to the first one that is nowhere."""

    tiers: tuple[Tier, ...]

    def __len__(self) -> int:
        return len(self.tiers)

    def num_on(self, tier: Tier) -> int:
        return self.tiers.count(tier)


class Pin:
    """Keeps blocks on the host, and their rows as they are, until it is released."""

    def __init__(self, shared: Shared, entries: Sequence[Entry]) -> None:
        self.hashes = tuple(entry.key for entry in entries)
        self.rows = tuple(entry.slot for entry in entries)  # of the host pool
        self._shared = shared
        self._entries: Sequence[Entry] = entries

    def release(self) -> None:
        """Safe to call twice, from any thread."""
        with self._shared.lock:
            entries, self._entries = self._entries, ()
            self._shared.num_kept -= len(entries)
        self._shared.unpin(entries)
