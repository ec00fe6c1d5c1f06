"""Which blocks of the tiers pay: those that come sooner than they would be computed.

Both are measured as it goes: what loads took, with their waiting, by the slowest tier in them; and
what steps took for tokens of prompts. Until both are known everything is loaded. What has become
too slow is tried again after a while: rates change. Who computes holds up the prompts that wait
meanwhile, and who loads does not: their time counts as well.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from stafette.kvtransfer.events import Tier

AGAIN_S = 60.0  # after which a rate is no longer trusted where it speaks against a tier
_FORGETTING = 0.9  # of what was measured, each time
_SLOWEST: Sequence[Tier] = ("host", "disk", "peer")


@dataclass(slots=True)
class _Rate:
    """Seconds for an amount, the latest counting most."""

    seconds: float = 0.0
    amount: float = 0.0
    at: float = 0.0

    def note(self, seconds: float, amount: float, at: float) -> None:
        self.seconds = _FORGETTING * self.seconds + seconds
        self.amount = _FORGETTING * self.amount + amount
        self.at = at

    @property
    def each_s(self) -> float | None:
        return self.seconds / self.amount if self.amount else None


class Paying:
    """Loads are noted by whoever moves blocks, steps by whoever computes: any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._computing = _Rate()  # tokens
        self._waiting = 0  # prompts
        self._loading: Mapping[str, _Rate] = {tier: _Rate() for tier in get_args(Tier)}  # blocks
        self._lock = threading.Lock()

    def note_step(self, prompt_tokens: int, seconds: float, waiting: int) -> None:
        """Take what a step took that computed so many tokens of prompts, while others waited."""
        with self._lock:
            self._waiting = waiting
            self._computing.note(seconds, prompt_tokens, self._clock())

    def note_load(self, tiers: Sequence[Tier], seconds: float) -> None:
        """Take what these blocks took from the wish to their arrival."""
        if tiers:
            with self._lock:
                self._loading[_slowest(tiers)].note(seconds, len(tiers), self._clock())

    def choose(self, tiers: Sequence[Tier], block_size: int) -> int:
        """Return how many of the first blocks to load; the others are computed sooner."""
        with self._lock:
            token_s = self._computing.each_s
            if token_s is None:
                return len(tiers)
            block_s = block_size * token_s * (1 + self._waiting)
            best, most_s = 0, 0.0
            for end in _ends(tiers):
                saved_s = end * block_s - self._load_s(_slowest(tiers[:end]), end)
                if saved_s >= most_s:
                    best, most_s = end, saved_s
            return best

    def _load_s(self, tier: Tier, num_blocks: int) -> float:
        rate = self._loading[tier]
        each_s = rate.each_s
        if each_s is None or self._clock() - rate.at >= AGAIN_S:
            return 0.0
        return each_s * num_blocks


def _slowest(tiers: Sequence[Tier]) -> Tier:
    return max(set(tiers), key=_SLOWEST.index)


def _ends(tiers: Sequence[Tier]) -> list[int]:
    """Return where a run of blocks of one tier ends."""
    changes = [i for i in range(1, len(tiers)) if tiers[i] != tiers[i - 1]]
    return [*changes, len(tiers)] if tiers else []
