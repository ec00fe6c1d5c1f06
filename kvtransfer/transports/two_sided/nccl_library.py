"""NCCL by its C interface: two ranks, no torch, nothing that waits by itself.

torch's ProcessGroupNCCL is not used: its watchdog ends the whole process when a peer dies, and what
keeps it from that is a variable of the environment, which an engine in the same process shares.
Communicators are made in the non-blocking mode, so a peer that never comes is a deadline here.

Written by NCCL's manual for 2.18 and newer; was never run, for want of GPUs.
"""

import ctypes
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_void_p
from typing import Protocol

SUCCESS, IN_PROGRESS = 0, 7
_MAGIC = 0xCAFEBEEF
_CONFIG_VERSION = 21_800  # of the structure below; newer libraries read it too
_UNDEFINED = -(1 << 31)
_UINT8 = 1
_LIBRARY = "libnccl.so.2"  # torch with CUDA has loaded it already


class NcclError(ConnectionError):
    """NCCL says no; the communicator is of no use any more."""


class Nccl(Protocol):
    """What a pipe needs. Each call returns at once."""

    def unique_id(self) -> bytes: ...

    def start(self, unique_id: bytes, rank: int) -> int:
        """Begin to make a communicator of two on the current device; `ready` tells when it is."""

    def ready(self, comm: int) -> bool:
        """Whether what was begun is through; NcclError when it failed, or the peer has."""

    def send(self, address: int, nbytes: int, peer: int, comm: int, stream: int) -> None: ...

    def receive(self, address: int, nbytes: int, peer: int, comm: int, stream: int) -> None: ...

    def abort(self, comm: int) -> None:
        """End what is under way, and the communicator."""


class _UniqueId(Structure):
    _fields_ = [("internal", c_char * 128)]


class _Config(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("magic", c_uint),
        ("version", c_uint),
        ("blocking", c_int),
        ("cga_cluster_size", c_int),
        ("min_ctas", c_int),
        ("max_ctas", c_int),
        ("net_name", c_char_p),
        ("split_share", c_int),
    ]


class NcclLibrary(Nccl):
    def __init__(self) -> None:
        """Raise OSError where there is no NCCL."""
        self._library = library = ctypes.CDLL(_LIBRARY)
        library.ncclGetErrorString.restype = c_char_p
        library.ncclCommInitRankConfig.argtypes = [
            POINTER(c_void_p), c_int, _UniqueId, c_int, POINTER(_Config),
        ]  # fmt: skip
        for move in (library.ncclSend, library.ncclRecv):
            move.argtypes = [c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p]
        library.ncclCommGetAsyncError.argtypes = [c_void_p, POINTER(c_int)]
        library.ncclCommAbort.argtypes = [c_void_p]

    def unique_id(self) -> bytes:
        found = _UniqueId()
        self._check(self._library.ncclGetUniqueId(byref(found)))
        return bytes(found)

    def start(self, unique_id: bytes, rank: int) -> int:
        config = _Config(
            ctypes.sizeof(_Config), _MAGIC, _CONFIG_VERSION, 0,
            _UNDEFINED, _UNDEFINED, _UNDEFINED, None, _UNDEFINED,
        )  # fmt: skip
        comm, identity = c_void_p(), _UniqueId.from_buffer_copy(unique_id)
        self._check(
            self._library.ncclCommInitRankConfig(byref(comm), 2, identity, rank, byref(config))
        )
        return comm.value or 0

    def ready(self, comm: int) -> bool:
        state = c_int(SUCCESS)
        self._check(self._library.ncclCommGetAsyncError(comm, byref(state)))
        self._check(state.value)
        return state.value == SUCCESS

    def send(self, address: int, nbytes: int, peer: int, comm: int, stream: int) -> None:
        self._check(self._library.ncclSend(address, nbytes, _UINT8, peer, comm, stream))

    def receive(self, address: int, nbytes: int, peer: int, comm: int, stream: int) -> None:
        self._check(self._library.ncclRecv(address, nbytes, _UINT8, peer, comm, stream))

    def abort(self, comm: int) -> None:
        self._library.ncclCommAbort(comm)

    def _check(self, code: int) -> None:
        if code not in (SUCCESS, IN_PROGRESS):
            told = self._library.ncclGetErrorString(code)
            raise NcclError(f"NCCL: {told.decode() if told else code}")
