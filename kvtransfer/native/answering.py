"""The native desk: answers small requests on a connection, without the interpreter's lock."""

import ctypes
import os
from functools import cache
from math import ceil

from stafette.kvtransfer.native import loading

_NAME = "_moving"
_ROOM_BYTES = 4 << 10  # for messages, as in answering.cpp
_LEFT, _ENDED, _HALF, _STALLED = 1, 2, 3, 4
_LONGEST_MS = (1 << 31) - 1


class Desk:
    """One connection's. `serve` is for one thread; any thread may promise, and drop."""

    def __init__(self, max_bytes: int, counters: "ctypes.Array[ctypes.c_uint64]") -> None:
        """MemoryError where there is none; `load` is asked before."""
        library = load()
        assert library is not None, "who has no library makes no desk"
        self._library = library
        self._counters = counters  # kept alive
        self._into = ctypes.create_string_buffer(_ROOM_BYTES)
        self._desk = library.stafette_desk_open_1(max_bytes, counters)
        if not self._desk:
            raise MemoryError("no room for a desk")

    def promise(self, job: bytes, generation: int, region: str) -> None:
        """Answer for a lease; what the job points to must live until it is dropped."""
        name = region.encode()
        if not self._library.stafette_desk_promise_1(self._desk, job, generation, name, len(name)):
            raise MemoryError("no room for a promise")

    def drop(self, lease_id: int) -> None:
        """Answer for it no more: when it returns, nothing of its blocks is read."""
        self._library.stafette_desk_drop_1(self._desk, lease_id)

    def serve(self, fd: int, stall_s: float) -> bytes:
        """Return what it cannot answer, nothing at the end; TimeoutError for a peer that stalls."""
        stall_ms = min(_LONGEST_MS, ceil(stall_s * 1_000))
        reason = self._library.stafette_desk_serve_1(self._desk, fd, stall_ms)
        if reason == _ENDED:
            return b""
        if reason == _HALF:
            raise TimeoutError("the rest of a message did not come")
        if reason == _STALLED:
            raise TimeoutError("it takes no bytes")
        if reason != _LEFT:
            raise OSError(-reason, os.strerror(-reason))
        size = self._library.stafette_desk_take_1(self._desk, self._into)
        return ctypes.string_at(self._into, size)

    def close(self) -> None:
        """Nobody serves any more, nor promises. Safe to call twice."""
        desk, self._desk = self._desk, None
        self._library.stafette_desk_close_1(desk)


@cache
def load() -> ctypes.CDLL | None:
    """Return the library, or None where it was not built, or for another version of this file."""
    library = loading.load(_NAME)
    if library is None or not hasattr(library, "stafette_desk_open_1"):
        return None
    place, number, word, octets = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_char_p
    library.stafette_desk_open_1.argtypes = [word, place]
    library.stafette_desk_open_1.restype = place
    library.stafette_desk_close_1.argtypes = [place]
    library.stafette_desk_close_1.restype = None
    library.stafette_desk_promise_1.argtypes = [place, octets, word, octets, word]
    library.stafette_desk_promise_1.restype = number
    library.stafette_desk_drop_1.argtypes = [place, word]
    library.stafette_desk_drop_1.restype = None
    library.stafette_desk_serve_1.argtypes = [place, number, number]
    library.stafette_desk_serve_1.restype = number
    library.stafette_desk_take_1.argtypes = [place, place]
    library.stafette_desk_take_1.restype = word
    return library
