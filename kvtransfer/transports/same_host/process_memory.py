"""process_vm_readv(2): reads another process's memory, by its number and the addresses there."""

import ctypes
import errno
import os
from functools import cache
from typing import Any

import numpy as np

from stafette.kvtransfer.extents import Uint64s

MAX_VECTORS = 1024  # of one call: IOV_MAX of Linux

_REASONS = {
    errno.ESRCH: "its process is gone",
    errno.EPERM: "this process may not read that one's memory: run both as the same user, and "
    "either set the sysctl kernel.yama.ptrace_scope to 0 or give this one CAP_SYS_PTRACE",
    errno.ENOSYS: "this kernel has no process_vm_readv",
    errno.EFAULT: "its memory is not mapped there any more",
}


def reason(number: int) -> str:
    """Return what an errno of the call means, and what to do."""
    return _REASONS.get(number, os.strerror(number))


def vectors(addresses: Uint64s, length: int) -> Uint64s:
    """Return struct iovec of one length, one a row."""
    table = np.empty((len(addresses), 2), np.uint64)
    table[:, 0] = addresses
    table[:, 1] = length
    return table


def read(pid: int, ours: Uint64s, theirs: Uint64s) -> None:
    """Fill our ranges with theirs; OSError when that cannot be done in full."""
    given = ours.ctypes.data, len(ours), theirs.ctypes.data, len(theirs)
    got = _call()(pid, *given, 0)
    if got != int(ours[:, 1].sum()):
        number = ctypes.get_errno() if got < 0 else errno.EFAULT
        raise OSError(number, os.strerror(number))


def read_bytes(pid: int, address: int, nbytes: int) -> bytes:
    into = np.empty(nbytes, np.uint8)
    ours = vectors(np.array([into.ctypes.data], np.uint64), nbytes)
    read(pid, ours, vectors(np.array([address], np.uint64), nbytes))
    return into.tobytes()


@cache
def _call() -> Any:
    call = ctypes.CDLL(None, use_errno=True).process_vm_readv
    call.restype = ctypes.c_ssize_t
    place, count = ctypes.c_void_p, ctypes.c_ulong
    call.argtypes = [ctypes.c_int, place, count, place, count, count]
    return call
