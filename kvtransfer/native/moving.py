"""The native reader: moves what a job asks for, and checks the owner's promise before and after."""

import ctypes
import struct
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import Any

from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.native import loading

_NAME, _READ, _READ_ONE = "_moving", "stafette_read_1", "stafette_read_one_1"
_SOURCE = struct.Struct("=10Q 3Qq3Q")  # moving.h's Job: the promise, the source ...
_TARGET = struct.Struct("=3Q")  # ... and the target
_Cursor = ctypes.c_uint64 * 5
_MOVED, _DETAIL = 2, 4
_BUDGET_BYTES = 16 << 20  # of one call: a job shows its progress that often
# Up to here a call keeps the interpreter's lock: a busy thread that got it meanwhile would keep it
# for milliseconds, and these take microseconds.
HOLDING_BYTES = 64 << 10

Words = tuple[int, ...]


class Outcome(IntEnum):
    """How a call ended; moving.h has the same numbers."""

    DONE = 0
    MORE = 1
    STOPPED = 2
    EPOCH_ENDED = 3
    LEASE_ENDED = 4
    STALE = 5
    OUTSIDE = 6
    FAILED = 7  # with an errno
    SHORT = 8
    OTHER = 9


_OUTCOMES = tuple(Outcome)
_MORE = int(Outcome.MORE)


class Source(IntEnum):
    MEMORY = 0
    FILE = 1
    PROCESS = 2


class Mover:
    """May be used by several threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        holding = ctypes.PyDLL("", handle=library._handle)
        self._read = _prepared(library[_READ])
        self._read_holding = _prepared(holding[_READ])
        self._read_one = holding[_READ_ONE]
        self._read_one.argtypes = [ctypes.c_char_p, *[ctypes.c_uint64] * 3]
        self._read_one.restype = ctypes.c_int32

    def move(
        self,
        job: bytes,
        pair: tuple[Extents, Extents],
        advance: Callable[[int], None],
        waits: bool = False,
    ) -> tuple[Outcome, int]:
        """Do what was packed, for (into, source); return how it ended, with an errno for FAILED.

        Whatever may wait for a device lets go of the interpreter's lock.
        """
        into, source = pair
        assert len(into) == len(source)
        cursor = _Cursor()
        ranges = into.offsets.tobytes(), source.offsets.tobytes(), into.lengths.tobytes()
        tiny = len(into) == 1 and into.total_bytes <= HOLDING_BYTES
        read = self._read_holding if tiny and not waits else self._read
        while True:
            outcome = read(job, *ranges, len(into), _BUDGET_BYTES, cursor)
            if cursor[_MOVED]:
                advance(cursor[_MOVED])
            if outcome != _MORE:
                return _OUTCOMES[outcome], cursor[_DETAIL]

    def move_one(self, job: bytes, one: tuple[int, int, int]) -> bool:
        """Move a small range, without letting go of the interpreter's lock; False: it did not."""
        return self._read_one(job, *one) == 0  # type: ignore[no-any-return]


def pack_source(promise: Words, place: Words) -> bytes:
    """Pack what does not change from job to job under one lease."""
    return _SOURCE.pack(*promise, *place)


def pack_target(address: int, nbytes: int, stop: int) -> bytes:
    """Pack what follows it: where the bytes go, and what is looked at to stop."""
    return _TARGET.pack(address, nbytes, stop)


def _prepared(function: Any) -> Any:
    size, place = ctypes.c_uint64, ctypes.c_char_p
    function.argtypes = [place, place, place, place, size, size, ctypes.POINTER(_Cursor)]
    function.restype = ctypes.c_int32
    return function


@cache
def load() -> Mover | None:
    """Return the reader, or None where it was not built, or for another version of this file."""
    library = loading.load(_NAME)
    known = library is not None and hasattr(library, _READ) and hasattr(library, _READ_ONE)
    return Mover(library) if library is not None and known else None
