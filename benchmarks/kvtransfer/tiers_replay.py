"""Replays a trace of prompts through the books of a host tier and the disk below it.

The decisions are those of the store: its caches, its policies, its admission. Only time is left
out: what leaves the host is on disk at once.
"""

from dataclasses import dataclass

from benchmarks.kvtransfer.trace_replay import Trace
from stafette.kvtransfer.blocks import ROOT
from stafette.kvtransfer.tiers.admission import make_admission
from stafette.kvtransfer.tiers.cache import BlockCache, Entry
from stafette.kvtransfer.tiers.registry import make_policy


@dataclass(frozen=True, slots=True)
class Setting:
    host_blocks: int
    disk_blocks: int
    admission: str
    host_policy: str = "adaptive"
    disk_policy: str = "adaptive"


@dataclass(frozen=True, slots=True)
class TieredReplay:
    blocks: int
    host_hits: int
    disk_hits: int
    writes: int  # of blocks, to disk

    @property
    def percent(self) -> float:
        return 100 * (self.host_hits + self.disk_hits) / self.blocks

    @property
    def host_percent(self) -> float:
        return 100 * self.host_hits / self.blocks

    @property
    def written_percent(self) -> float:
        return 100 * self.writes / self.blocks


class TwoTiers:
    def __init__(self, setting: Setting) -> None:
        size, below = setting.host_blocks, setting.disk_blocks
        self._host = BlockCache(size, make_policy(setting.host_policy, size), leaves_first=False)
        self._disk = BlockCache(below, make_policy(setting.disk_policy, below))
        self._admission = make_admission(setting.admission, below)
        self.host_hits = self.disk_hits = self.writes = 0

    def prompt(self, keys: list[bytes]) -> None:
        """Find what there is of a prompt, and take in the rest."""
        below = [key for key in keys if key not in self._host]
        self._admission.used(keys, below)
        for key in keys:
            if key in self._host:
                self.host_hits += 1
            elif key in self._disk:
                self.disk_hits += 1
            else:
                break
        self._disk.touch(below)
        self._host.touch(keys)
        self._take_in(keys)

    def _take_in(self, keys: list[bytes]) -> None:
        held = [self._host.pin(key) for key in keys if key in self._host]
        parents = dict(zip(keys, [ROOT, *keys], strict=False))
        missing = [key for key in keys if key not in self._host]
        rows, evicted = self._host.reserve(len(missing))
        pairs = zip(missing, rows, strict=False)
        self._host.store([Entry(key, parents[key], row) for key, row in pairs])
        for entry in held:
            self._host.unpin(entry)
        for entry in evicted:
            self._demote(entry)

    def _demote(self, entry: Entry) -> None:
        if entry.key in self._disk:
            return
        if self._admission.admits(entry.key, full=not self._disk.num_free):
            slots, _ = self._disk.reserve(1)
            self._disk.store([Entry(entry.key, entry.parent, slot) for slot in slots])
            self.writes += len(slots)


def replay_tiers(trace: Trace, setting: Setting) -> TieredReplay:
    tiers = TwoTiers(setting)
    for keys in trace:
        tiers.prompt(keys)
    blocks = sum(map(len, trace))
    return TieredReplay(blocks, tiers.host_hits, tiers.disk_hits, tiers.writes)
