"""Where the next byte of a job lies, in this process's memory."""

import ctypes

import numpy as np

from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.memory import Bytes
from stafette.kvtransfer.regions import LocalRegion

MAX_VECTORS = 1_024  # the kernel's limit of one call


class Ranges(ctypes.Structure):
    """Ranges of a memory, used up from the front. Native loops use the same structure."""

    count: int
    index: int
    within: int
    left: int

    _fields_ = [
        ("base", ctypes.c_void_p),
        ("offsets", ctypes.c_char_p),  # words of 8 bytes
        ("lengths", ctypes.c_char_p),
        ("count", ctypes.c_uint64),
        ("index", ctypes.c_uint64),  # of the range that has the next byte
        ("within", ctypes.c_uint64),  # how many bytes of that range are done
        ("left", ctypes.c_uint64),  # bytes of all ranges that are not done
    ]

    @classmethod
    def of(cls, region: LocalRegion, extents: Extents) -> "Ranges":
        """Return the ranges that extents are; they lie within the region, which is host memory."""
        assert region.memory is not None, "host memory has an array"
        offsets, lengths = extents.offsets.tobytes(), extents.lengths.tobytes()
        total = extents.total_bytes
        ranges = cls(region.address, offsets, lengths, len(extents), 0, 0, total)
        ranges._keep(region.memory, offsets, lengths)
        return ranges

    @classmethod
    def over(cls, buffer: Bytes, repeated: int, last: int) -> "Ranges":
        """Return a buffer so many times, one after the other, and its first bytes once more."""
        lengths = np.full(repeated + 1, len(buffer), np.uint64)
        lengths[-1] = last
        offsets, words = bytes(lengths.nbytes), lengths.tobytes()
        total = repeated * len(buffer) + last
        ranges = cls(buffer.ctypes.data, offsets, words, len(lengths), 0, 0, total)
        ranges._keep(buffer, offsets, words)
        return ranges

    def copy(self) -> "Ranges":
        """Return the same ranges, to be used up apart from these."""
        other = type(self).from_buffer_copy(self)
        other._keep(self._memory, *self._words)
        return other

    def views(self, most: int) -> list[memoryview]:
        """Return where the next bytes are, as far as one call of the kernel goes."""
        index, within, found = self.index, self.within, list[memoryview]()
        memory, (offsets, lengths) = self._memory.data, self._numbers()
        while most > 0 and index < self.count and len(found) < MAX_VECTORS:
            start = offsets[index] + within
            size = min(lengths[index] - within, most)
            if size:
                found.append(memory[start : start + size])
            most -= size
            index, within = index + 1, 0
        return found

    def advance(self, num_bytes: int) -> None:
        """Count bytes as done."""
        self.left -= num_bytes
        _, lengths = self._numbers()
        index, within = self.index, self.within + num_bytes
        while index < self.count and within >= lengths[index]:
            index, within = index + 1, within - lengths[index]
        self.index, self.within = index, within

    def take_rest(self) -> bytes:
        """Return a copy of all that is left, and count it as done."""
        parts = []
        while self.left:
            views = self.views(self.left)
            parts += views
            self.advance(sum(map(len, views)))
        return b"".join(parts)

    def _keep(self, memory: Bytes, *words: bytes) -> None:
        """Keep alive what the addresses point to."""
        self._memory, self._words = memory, words

    def _numbers(self) -> tuple[memoryview, memoryview]:
        """Return the offsets and the lengths."""
        offsets, lengths = self._words
        return memoryview(offsets).cast("Q"), memoryview(lengths).cast("Q")
