"""What the tiers have done, and how full they are."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(slots=True)
class Counters:
    """Of one tier since the start, in blocks unless the name says otherwise."""

    hits: int = 0  # were here when a prompt wanted them
    stored: int = 0
    evicted: int = 0
    lost: int = 0  # of those, to make room at once: there was no time to write them to disk
    refused: int = 0  # not admitted
    corrupt: int = 0  # not what was written: skipped
    errors: int = 0  # calls of the device, the disk or the peer that failed
    read_bytes: int = 0  # towards the device
    read_s: float = 0.0  # in all threads together
    written_bytes: int = 0  # away from it
    written_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TierStats:
    num_blocks: int
    used_blocks: int
    pinned_blocks: int
    fragmentation: float  # the share of the free slots outside of the longest run of them
    counters: Counters
    off: str = ""  # why the tier is not used any more

    @property
    def usage(self) -> float:
        return self.used_blocks / self.num_blocks


@dataclass(slots=True)
class Calls:
    """What the engine asked for, in blocks."""

    touched: int = 0  # of all prompts
    offered: int = 0  # to be offloaded
    offloaded: int = 0
    already_there: int = 0
    offloads_dropped: int = 0  # no room in the queue, or on the host
    declined: int = 0  # found, but computed sooner than they would come
    wanted: int = 0  # to be onboarded
    onboarded: int = 0
    preheated: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """Blocks in queues."""

    copies_in: int
    copies_out: int
    loads: int
    writes: int


@dataclass(frozen=True, slots=True)
class StoreStats:
    host: TierStats
    disk: TierStats | None
    peer: Counters
    calls: Calls
    waiting: Waiting


def fragmentation(free_slots: npt.NDArray[np.int64]) -> float:
    """Return which share of the slots does not lie in the longest run of them."""
    if not len(free_slots):
        return 0.0
    ends = np.flatnonzero(np.diff(np.sort(free_slots)) != 1) + 1
    runs = np.diff(np.concatenate(([0], ends, [len(free_slots)])))
    return 1 - int(runs.max()) / len(free_slots)
