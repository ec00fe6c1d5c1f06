"""Host memory that a process can show to others: a sealed memfd, which only its makers can write.

Mappings begin where a huge page can: then 512 of the usual pages cost one entry of the page table,
and scattered blocks are read a third quicker.
"""

import ctypes
import fcntl
import logging
import mmap
import os
from functools import cache

import numpy as np
import numpy.typing as npt

from stafette.kvtransfer.errors import InvalidValue

_log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]

HUGE_PAGE_BYTES = 2 << 20

_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h; Python names it from 3.13 on
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | _F_SEAL_FUTURE_WRITE
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000  # linux/mman.h
_MADV_COLLAPSE = 25  # from Linux 6.1 on


class SharedMemory:
    """Memory of ours. Who gets its file descriptor can map it to read, and cannot resize it.

    Made with `sealed=False`, another process of ours may `join` it to write there as well, until it
    is sealed.

    With `huge_pages` all of it is made resident now, in huge pages where the system has them: right
    for a pool that will be used in full. Without, pages come when they are touched, and are huge
    where the system's administrator has allowed it (transparent_hugepage/shmem_enabled).
    """

    name: str
    fd: int  # -1: given up
    nbytes: int
    array: Bytes

    def __init__(
        self, name: str, nbytes: int, huge_pages: bool = False, sealed: bool = True
    ) -> None:
        if nbytes < 1:
            raise InvalidValue("nbytes", nbytes, "must be at least 1")
        fd = os.memfd_create(f"stafette-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, nbytes)
        self._map(name, fd, nbytes)
        if sealed:
            self.seal()  # after our own mapping, which may write
        if huge_pages:
            self._make_resident()

    @classmethod
    def join(cls, name: str, fd: int) -> "SharedMemory":
        """Map memory that another process of ours has made, to write; `fd` is ours from now on."""
        memory = cls.__new__(cls)
        memory._map(name, fd, os.fstat(fd).st_size)
        return memory

    def seal(self) -> None:
        """From now on nobody new can write here."""
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)

    def close(self) -> None:
        """Give up the descriptor. The memory goes with the last array and mapping of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _map(self, name: str, fd: int, nbytes: int) -> None:
        self.name, self.fd, self.nbytes = name, fd, nbytes
        self.array = _map(fd, nbytes, mmap.PROT_READ | mmap.PROT_WRITE)

    def _make_resident(self) -> None:
        self.array[::HUGE_PAGE_BYTES] = 0  # huge pages are made only where there is something
        whole = self.nbytes // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        if whole and _libc().madvise(self.array.ctypes.data, whole, _MADV_COLLAPSE):
            told = os.strerror(ctypes.get_errno())
            _log.info("memory %s has not only huge pages: %s", self.name, told)
        self.array[:: mmap.PAGESIZE] = 0


def map_to_read(fd: int, nbytes: int) -> Bytes:
    """Return a peer's memory, read-only. The descriptor may be closed afterwards."""
    found = os.fstat(fd).st_size
    if found < nbytes:
        raise InvalidValue("fd", found, f"must hold at least {nbytes} bytes")
    return _map(fd, nbytes, mmap.PROT_READ)


def _map(fd: int, nbytes: int, protection: int) -> Bytes:
    """Return a shared mapping of a file, which ends with the last reference to it."""
    if nbytes < HUGE_PAGE_BYTES:
        return np.frombuffer(mmap.mmap(fd, nbytes, prot=protection), np.uint8)
    # When nobody refers to the place any more, Python unmaps all of it, what we put there included.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    place = mmap.mmap(-1, nbytes + HUGE_PAGE_BYTES, flags=flags, prot=protection)
    bare = np.frombuffer(place, np.uint8)
    skipped = -bare.ctypes.data % HUGE_PAGE_BYTES
    array = bare[skipped : skipped + nbytes]
    _map_at(array.ctypes.data, fd, nbytes, protection)
    _libc().madvise(array.ctypes.data, nbytes, mmap.MADV_HUGEPAGE)  # refused where there are none
    return array


def _map_at(address: int, fd: int, nbytes: int, protection: int) -> None:
    """Put a mapping in place of another."""
    flags = mmap.MAP_SHARED | _MAP_FIXED
    if _libc().mmap(address, nbytes, protection, flags, fd, 0) != address:
        raise OSError(ctypes.get_errno(), f"mapping {nbytes} bytes")


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    place, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes = [place, size, number, number, number, ctypes.c_int64]
    libc.mmap.restype = place
    libc.madvise.argtypes = [place, size, number]
    return libc
