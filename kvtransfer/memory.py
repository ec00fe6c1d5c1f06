"""Host memory that a process can show to others: a sealed memfd, which only its maker can write."""

import fcntl
import mmap
import os

import numpy as np
import numpy.typing as npt

from stafette.kvtransfer.errors import InvalidValue

Bytes = npt.NDArray[np.uint8]

_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h; Python names it from 3.13 on
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | _F_SEAL_FUTURE_WRITE


class SharedMemory:
    """Memory of ours. Who gets its file descriptor can map it to read, and cannot resize it."""

    def __init__(self, name: str, nbytes: int) -> None:
        if nbytes < 1:
            raise InvalidValue("nbytes", nbytes, "must be at least 1")
        self.name = name
        self.nbytes = nbytes
        self.fd = os.memfd_create(f"stafette-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, nbytes)
        self._map = mmap.mmap(self.fd, nbytes)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)  # after our own mapping, which may write
        self.array: Bytes = np.frombuffer(self._map, np.uint8)

    def close(self) -> None:
        """Give up the descriptor. The memory goes with the last array and mapping of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def map_to_read(fd: int, nbytes: int) -> Bytes:
    """Return a peer's memory, read-only. The descriptor may be closed afterwards."""
    found = os.fstat(fd).st_size
    if found < nbytes:
        raise InvalidValue("fd", found, f"must hold at least {nbytes} bytes")
    mapping = mmap.mmap(fd, nbytes, prot=mmap.PROT_READ)
    return np.frombuffer(mapping, np.uint8)
