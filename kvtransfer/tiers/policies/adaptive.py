"""A tournament of LRU and 2Q: whichever would have hit more of late evicts.

2Q wins where blocks pass through faster than they are used again, LRU where nearly all fit. Both
order all blocks of the tier, so that either can take over at any time. Who would have hit more is
found by playing both on a sample of the keys, with a cache of names that is as much smaller.
"""

from stafette.kvtransfer.tiers.policies.lru import Lru
from stafette.kvtransfer.tiers.policies.two_queue import TwoQueue
from stafette.kvtransfer.tiers.policy import EvictionPolicy

_MOST_RARE = 16  # one key of so many is in the sample
_LEAST_SAMPLED = 256  # blocks that the small caches hold, where the tier holds so many
_ROUND = 4  # the leader may change after so many uses for each block of the small caches
_MEMORY = 0.5  # the weight of the rounds before
_MARGIN = 1.02  # a change costs: it must promise this much


class Adaptive(EvictionPolicy):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._rarity = sample_rarity(capacity)
        sampled = max(1, capacity // self._rarity)
        self._players: tuple[EvictionPolicy, ...] = (Lru(capacity), TwoQueue(capacity))
        self._trials = (Trial(Lru(sampled)), Trial(TwoQueue(sampled)))
        self._leader = 0
        self._round_uses = _ROUND * sampled
        self._uses = 0  # in this round

    def __len__(self) -> int:
        return len(self._players[0])

    @property
    def leader(self) -> EvictionPolicy:
        return self._players[self._leader]

    def add(self, key: bytes) -> None:
        self._sample(key)
        for player in self._players:
            player.add(key)

    def touch(self, key: bytes) -> None:
        self._sample(key)
        for player in self._players:
            player.touch(key)

    def remove(self, key: bytes) -> None:
        for player in self._players:
            player.remove(key)

    def evict(self) -> bytes:
        key = self.leader.evict()
        for player in self._players:
            if player is not self.leader:
                player.remove(key)
        return key

    def restore(self, key: bytes) -> None:
        for player in self._players:
            player.restore(key)

    def _sample(self, key: bytes) -> None:
        if key[-1] % self._rarity:  # a hash's bytes are even: any one of them draws the sample
            return
        for trial in self._trials:
            trial.use(key)
        self._uses += 1
        if self._uses == self._round_uses:
            self._end_round()

    def _end_round(self) -> None:
        best = max(range(len(self._trials)), key=lambda i: self._trials[i].hits)
        if self._trials[best].hits > self._trials[self._leader].hits * _MARGIN:
            self._leader = best
        for trial in self._trials:
            trial.hits *= _MEMORY
        self._uses = 0


class Trial:
    """A cache of names alone, full from the start of its capacity on, that counts its hits."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.hits = 0.0
        self._policy = policy
        self._keys: set[bytes] = set()

    def use(self, key: bytes) -> None:
        if key in self._keys:
            self.hits += 1
            self._policy.touch(key)
            return
        if len(self._keys) == self._policy.capacity:
            self._keys.discard(self._policy.evict())
        self._keys.add(key)
        self._policy.add(key)


def sample_rarity(capacity: int) -> int:
    """Return the power of two that leaves the sample large enough."""
    rarity = 1
    while rarity < _MOST_RARE and capacity // (2 * rarity) >= _LEAST_SAMPLED:
        rarity *= 2
    return rarity
