"""A job's ranges, cut into parts of at most so many bytes: what is under way at a time."""

from dataclasses import dataclass

import numpy as np

from stafette.kvtransfer.extents import Extents, Uint64s


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some ranges, one after the other in the stream of a job's bytes."""

    offsets: Uint64s
    lengths: Uint64s
    nbytes: int


class Cuts:
    """Extents of equal lengths, as those of the two sides are, are cut at the same places."""

    def __init__(self, extents: Extents, part_bytes: int) -> None:
        self._offsets = extents.offsets
        self._lengths = extents.lengths
        self._ends = np.cumsum(extents.lengths)
        self._part_bytes = part_bytes
        self.total_bytes = int(self._ends[-1]) if len(extents) else 0

    def __len__(self) -> int:
        return -(-self.total_bytes // self._part_bytes)

    def size(self, index: int) -> int:
        """Return how many bytes a part has."""
        return min(self._part_bytes, self.total_bytes - index * self._part_bytes)

    def __getitem__(self, index: int) -> Part:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self._part_bytes
        stop = start + self.size(index)
        first = int(np.searchsorted(self._ends, start, "right"))
        last = int(np.searchsorted(self._ends, stop, "left"))
        offsets = self._offsets[first : last + 1].copy()
        lengths = self._lengths[first : last + 1].copy()
        before = np.uint64(start) - (self._ends[first] - self._lengths[first])
        offsets[0] += before
        lengths[0] -= before
        lengths[-1] -= self._ends[last] - np.uint64(stop)
        return Part(offsets, lengths, stop - start)
