"""Which blocks that leave the host are worth a write to disk.

On a disk that holds most of what comes back, a block that is refused is a hit that is lost. On a
small one, blocks that were used once push out those that are used again. "adaptive" finds out
which it is, by playing both on a sample of the keys.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from difflib import get_close_matches

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.tiers.frequency import FrequencySketch
from stafette.kvtransfer.tiers.policies.adaptive import sample_rarity
from stafette.kvtransfer.tiers.policies.lru import Lru

MIN_USES = 2
_ROUND = 4  # the answer may change after so many offers for each block of the small caches
_MEMORY = 0.5  # the weight of the rounds before
_MARGIN = 1.02  # a change must promise this much


class Admission(ABC):
    """Not thread-safe: its tier's lock protects it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    @abstractmethod
    def used(self, keys: Sequence[bytes], below: Sequence[bytes]) -> None:
        """Note that a prompt has these blocks, and which of them were not on the host."""

    @abstractmethod
    def admits(self, key: bytes, full: bool) -> bool:
        """Whether a block that leaves the host goes to the disk, which is full or not."""


class Always(Admission):
    def used(self, keys: Sequence[bytes], below: Sequence[bytes]) -> None:
        pass

    def admits(self, key: bytes, full: bool) -> bool:
        return True


class Frequency(Admission):
    """Once the disk is full, only blocks that were used at least twice of late."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._sketch = FrequencySketch(capacity)

    def used(self, keys: Sequence[bytes], below: Sequence[bytes]) -> None:
        self._sketch.count(keys)

    def admits(self, key: bytes, full: bool) -> bool:
        return not full or self._sketch.estimate(key) >= MIN_USES


class AdaptiveAdmission(Admission):
    """Always or by frequency, whichever would have hit more of late."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._sketch = FrequencySketch(capacity)
        self._rarity = sample_rarity(capacity)
        sampled = max(1, capacity // self._rarity)
        self._open, self._picky = _Trial(sampled), _Trial(sampled)
        self._round_offers = _ROUND * sampled
        self._offers = 0  # in this round
        self.picky = False

    def used(self, keys: Sequence[bytes], below: Sequence[bytes]) -> None:
        self._sketch.count(keys)
        for key in below:
            if not key[-1] % self._rarity:
                self._open.use(key)
                self._picky.use(key)

    def admits(self, key: bytes, full: bool) -> bool:
        proven = self._sketch.estimate(key) >= MIN_USES
        if not key[-1] % self._rarity:
            self._play(key, proven)
        return proven or not full or not self.picky

    def _play(self, key: bytes, proven: bool) -> None:
        self._open.offer(key)
        if proven or not self._picky.full:
            self._picky.offer(key)
        self._offers += 1
        if self._offers == self._round_offers:
            self._end_round()

    def _end_round(self) -> None:
        leader, other = (self._picky, self._open) if self.picky else (self._open, self._picky)
        if other.hits > leader.hits * _MARGIN:
            self.picky = not self.picky
        self._open.hits *= _MEMORY
        self._picky.hits *= _MEMORY
        self._offers = 0


class _Trial:
    """A small disk of names alone, that counts its hits."""

    def __init__(self, capacity: int) -> None:
        self.hits = 0.0
        self._order = Lru(capacity)
        self._keys: set[bytes] = set()

    @property
    def full(self) -> bool:
        return len(self._keys) >= self._order.capacity

    def use(self, key: bytes) -> None:
        if key in self._keys:
            self.hits += 1
            self._order.touch(key)

    def offer(self, key: bytes) -> None:
        if key in self._keys:
            return
        if self.full:
            self._keys.discard(self._order.evict())
        self._keys.add(key)
        self._order.add(key)


ADMISSIONS: dict[str, type[Admission]] = {
    "adaptive": AdaptiveAdmission,
    "always": Always,
    "frequency": Frequency,
}


def check_admission(field: str, name: str) -> None:
    """Raise InvalidValue for a name that no admission has."""
    if name not in ADMISSIONS:
        near = get_close_matches(name, ADMISSIONS, n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise InvalidValue(field, name, f"must be one of {', '.join(ADMISSIONS)}{hint}")


def make_admission(name: str, capacity: int) -> Admission:
    check_admission("admission", name)
    return ADMISSIONS[name](capacity)
