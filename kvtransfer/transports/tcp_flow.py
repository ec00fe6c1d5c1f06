"""The bytes of one job on one connection, and the digest of those that went by."""

import ctypes
from dataclasses import dataclass, field

import numpy as np
import xxhash

from stafette.kvtransfer.native import sockets
from stafette.kvtransfer.transports.tcp_ranges import Ranges

_SCATTERED_BYTES = 16 << 10  # ranges that are shorter, on average, are hashed many at a time
_BUFFER_BYTES = 256 << 10


class Digest:
    """xxh3 of a job's bytes, taken in while they are still in the cache."""

    def __init__(self, native: bool) -> None:
        self._hash = xxhash.xxh3_64()
        self._library = sockets.load() if native else None
        self._behind: Ranges | None = None
        self._scattered = False

    def follow(self, ranges: Ranges) -> None:
        """From here on `catch_up` takes in what goes by in these ranges."""
        self._behind = ranges.copy()
        self._scattered = ranges.left < _SCATTERED_BYTES * ranges.count

    def catch_up(self, ranges: Ranges) -> None:
        behind = self._behind
        assert behind is not None, "it follows some ranges"
        num_bytes = behind.left - ranges.left
        if self._library is not None and self._scattered:
            self._gather(self._library, behind, num_bytes)
        else:
            self._take_in(behind, num_bytes)

    def update(self, data: bytes) -> None:
        """Take in bytes that do not go by in the ranges."""
        self._hash.update(data)

    def value(self) -> int:
        return self._hash.intdigest()

    def _take_in(self, behind: Ranges, num_bytes: int) -> None:
        while num_bytes > 0:
            views = behind.views(num_bytes)
            for view in views:
                self._hash.update(view)
            size = sum(map(len, views))
            behind.advance(size)
            num_bytes -= size

    def _gather(self, library: ctypes.CDLL, behind: Ranges, num_bytes: int) -> None:
        """One call for thousands of ranges: hashing them one by one is mostly calling."""
        buffer = np.empty(min(num_bytes, _BUFFER_BYTES), np.uint8)
        while num_bytes > 0:
            size = min(num_bytes, _BUFFER_BYTES)
            library.stafette_gather_1(ctypes.byref(behind), buffer.ctypes.data, size)
            self._hash.update(buffer.data[:size])
            num_bytes -= size


@dataclass(slots=True, eq=False)
class Flow:
    """The bytes of one job on one connection."""

    number: int  # by which both sides know it
    ranges: Ranges
    digest: Digest | None = None  # of a job that is verified
    stop: ctypes.c_int32 = field(default_factory=lambda: ctypes.c_int32(0))  # 1: no more bytes

    def __post_init__(self) -> None:
        if self.digest is not None:
            self.digest.follow(self.ranges)

    def passed(self) -> None:
        """Bytes have gone by."""
        if self.digest is not None:
            self.digest.catch_up(self.ranges)
