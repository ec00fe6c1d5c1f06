"""What the tiers of all workers have found, taken in and let go, of those that are gone as well."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from stafette.kvtransfer.tiers.stats import Counters, StoreStats, TierStats
from stafette.workers.mocker.core import Mocker


@dataclass(frozen=True, slots=True)
class TierUse:
    """One tier of all workers together. Shares are of the prompts' whole blocks, each worker's."""

    found_tokens: int
    found_share: float
    stored_tokens: int = 0
    evicted_tokens: int = 0
    lost_tokens: int = 0  # of those, before they could be written to the disk
    usage: float = 0.0  # how full it is at the end, of workers that are there


@dataclass(slots=True)
class TierTally:
    """Fed with each worker once: when it goes, or at the end."""

    block_size: int
    wanted_blocks: int = 0
    device_blocks: int = 0
    _counters: dict[str, list[Counters]] = field(default_factory=dict)
    _living: dict[str, list[TierStats]] = field(default_factory=dict)

    def add(self, worker: Mocker, living: bool = False) -> None:
        if worker.tiers is None or worker.tiers.store is None:
            return
        stats = worker.tiers.store.stats()
        self.wanted_blocks += stats.calls.touched
        self.device_blocks += worker.imports.counters.held_tokens // self.block_size
        for name, tier in _tiers_of(stats):
            self._counters.setdefault(name, []).append(tier.counters)
            if living:
                self._living.setdefault(name, []).append(tier)

    def uses(self) -> dict[str, TierUse]:
        """Return what was found where; nothing when there are no tiers."""
        if not self._counters:
            return {}
        device = TierUse(self.device_blocks * self.block_size, self._share(self.device_blocks))
        return {"device": device} | {name: self._use(name) for name in self._counters}

    def _use(self, name: str) -> TierUse:
        counters, living = self._counters[name], self._living.get(name, [])
        found, size = sum(each.hits for each in counters), self.block_size
        return TierUse(
            found_tokens=found * size,
            found_share=self._share(found),
            stored_tokens=sum(each.stored for each in counters) * size,
            evicted_tokens=sum(each.evicted for each in counters) * size,
            lost_tokens=sum(each.lost for each in counters) * size,
            usage=_mean(tier.usage for tier in living),
        )

    def _share(self, blocks: int) -> float:
        return blocks / self.wanted_blocks if self.wanted_blocks else 0.0


def _tiers_of(stats: StoreStats) -> list[tuple[str, TierStats]]:
    below = [] if stats.disk is None else [("disk", stats.disk)]
    return [("host", stats.host), *below]


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known) if known else 0.0
