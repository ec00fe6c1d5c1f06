"""How many blocks the running prompts of one target take, those that they share counted once.

In lexical order, chains that begin alike are neighbours. So a chain shares with all others together
what it shares with its two neighbours, and nothing has to be done block by block.
"""

from bisect import bisect_left, insort

from stafette.kvtransfer.blocks import HASH_BYTES


class ActiveChains:
    def __init__(self) -> None:
        self.num_blocks = 0  # distinct ones
        self._chains: list[bytes] = []  # sorted; equal ones as often as they run

    def __len__(self) -> int:
        return len(self._chains)

    def shared(self, chain: bytes) -> int:
        """Return how many first blocks of a chain some running one has too."""
        return self._shared_at(chain, bisect_left(self._chains, chain))

    def add(self, chain: bytes) -> None:
        self.num_blocks += len(chain) // HASH_BYTES - self.shared(chain)
        insort(self._chains, chain)

    def remove(self, chain: bytes) -> None:
        at = bisect_left(self._chains, chain)
        del self._chains[at]
        self.num_blocks -= len(chain) // HASH_BYTES - self._shared_at(chain, at)

    def _shared_at(self, chain: bytes, at: int) -> int:
        """`at` is where it stands, or would: its neighbours are before and there."""
        neighbours = self._chains[max(0, at - 1) : at + 1]
        return max((common_blocks(chain, other) for other in neighbours), default=0)


def common_blocks(one: bytes, other: bytes) -> int:
    """Return how many first blocks two chains have in common."""
    low, high = 0, min(len(one), len(other)) // HASH_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        end = middle * HASH_BYTES
        # One hash stands for all before it.
        if one[end - HASH_BYTES : end] == other[end - HASH_BYTES : end]:
            low = middle
        else:
            high = middle - 1
    return low
