"""Reads and writes at places of a file that are complete, or fail."""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

Buffer = memoryview
Call = Callable[[int, Sequence[Buffer], int], int]

_libc = ctypes.CDLL(None, use_errno=True)
_NO_SUCH_CALL = (errno.EOPNOTSUPP, errno.ENOSYS)


class Syscalls:
    """How files are touched; tests put failing ones in its place."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.preadv(fd, buffers, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def allocate(self, fd: int, nbytes: int) -> None:
        """Make sure of the room, where the file system can; posix_fallocate would write it all."""
        if _libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes)) == 0:
            return
        number = ctypes.get_errno()
        if number not in _NO_SUCH_CALL:
            raise OSError(number, os.strerror(number))


def move(call: Call, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Read into, or write, all of the buffers; OSError when the file or the disk ends before."""
    left = list(buffers)
    while left:
        moved = call(fd, left, offset)
        if moved <= 0:
            raise OSError(errno.EIO, "fewer bytes than there should be")
        offset += moved
        left = _behind(left, moved)


def runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (index, length) of each run of numbers that follow each other."""
    first = 0
    for index, (number, after) in enumerate(pairwise(numbers), start=1):
        if after != number + 1:
            yield first, index - first
            first = index
    if numbers:
        yield first, len(numbers) - first


def _behind(buffers: list[Buffer], moved: int) -> list[Buffer]:
    """Return what is left of the buffers."""
    for index, buffer in enumerate(buffers):
        if moved < buffer.nbytes:
            return [buffer[moved:], *buffers[index + 1 :]]
        moved -= buffer.nbytes
    return []
