"""The contract of a peer tier: somebody else who may have blocks, and gives us copies."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence


class BlockSource(ABC):
    """Peers, or a store that many workers share. Threads of the tiers call it, several at once."""

    @abstractmethod
    def locate(self, hashes: Sequence[bytes]) -> Collection[bytes]:
        """Return those of the blocks that can probably be had. Asks nobody: it must not block."""

    @abstractmethod
    def fetch(self, hashes: Sequence[bytes], rows: Sequence[int], timeout_s: float) -> list[bool]:
        """Fill rows of the host pool with these blocks; return for each whether it arrived.

        Nothing is written into a row any more when it returns, or raises a KvTransferError.
        """
