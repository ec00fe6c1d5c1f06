"""CUDA's driver by ctypes: the few calls that a reader of another process's GPU memory needs.

The driver's own interface, not the runtime's: it comes with every driver, whatever CUDA torch was
built for. It shares the primary contexts, and so the memory, with torch in the same process.

Written by the manual of CUDA 12.8, whose batched copy is used where the driver has it; was never
run on a GPU. The tests call it on a double of the library, in host memory.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, byref, c_char, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.extents import Uint64s

HANDLE_BYTES = 64
UUID_BYTES = 16
_LIBRARY = "libcuda.so.1"
_NOT_READY = 600
_LAZY_ENABLE_PEER_ACCESS = 1
_NON_BLOCKING = 1  # a stream that waits for nothing on the default one
_DISABLE_TIMING = 2  # an event that is quick
_IN_STREAM_ORDER = 1


class CudaError(OSError):
    """A call of the driver failed."""


class IpcHandle(Structure):
    _fields_ = [("reserved", c_char * HANDLE_BYTES)]


class Uuid(Structure):
    _fields_ = [("bytes", c_char * UUID_BYTES)]


class Location(Structure):
    _fields_ = [("type", c_int), ("id", c_int)]


class CopyAttributes(Structure):
    _fields_ = [
        ("source_order", c_int),
        ("source_hint", Location),
        ("destination_hint", Location),
        ("flags", c_uint),
    ]


class Direction(Enum):
    DEVICE_TO_DEVICE = "cuMemcpyDtoDAsync_v2"
    DEVICE_TO_HOST = "cuMemcpyDtoHAsync_v2"
    HOST_TO_DEVICE = "cuMemcpyHtoDAsync_v2"


@dataclass(frozen=True, slots=True)
class Copies:
    """Pairs of addresses, all in one direction."""

    direction: Direction
    into: Uint64s
    source: Uint64s
    lengths: Uint64s


_POINTER = c_void_p
_SIGNATURES: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuGetErrorName": [c_int, POINTER(ctypes.c_char_p)],
    "cuDeviceGetCount": [POINTER(c_int)],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDeviceGetUuid_v2": [POINTER(Uuid), c_int],
    "cuDeviceCanAccessPeer": [POINTER(c_int), c_int, c_int],
    "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
    "cuDevicePrimaryCtxRelease_v2": [c_int],
    "cuCtxPushCurrent_v2": [c_void_p],
    "cuCtxPopCurrent_v2": [POINTER(c_void_p)],
    "cuMemGetAddressRange_v2": [POINTER(c_uint64), POINTER(c_size_t), c_uint64],
    "cuIpcGetMemHandle": [POINTER(IpcHandle), c_uint64],
    "cuIpcOpenMemHandle_v2": [POINTER(c_uint64), IpcHandle, c_uint],
    "cuIpcCloseMemHandle": [c_uint64],
    "cuStreamCreate": [POINTER(c_void_p), c_uint],
    "cuStreamSynchronize": [c_void_p],
    "cuStreamDestroy_v2": [c_void_p],
    "cuEventCreate": [POINTER(c_void_p), c_uint],
    "cuEventRecord": [c_void_p, c_void_p],
    "cuEventQuery": [c_void_p],
    "cuEventDestroy_v2": [c_void_p],
    "cuMemcpyDtoDAsync_v2": [c_uint64, c_uint64, c_size_t, c_void_p],
    "cuMemcpyDtoHAsync_v2": [c_void_p, c_uint64, c_size_t, c_void_p],
    "cuMemcpyHtoDAsync_v2": [c_uint64, c_void_p, c_size_t, c_void_p],
}
# Where the driver has it: from 12.8 on.
_BATCH = "cuMemcpyBatchAsync"
_BATCH_SIGNATURE = [
    c_void_p, c_void_p, c_void_p, c_size_t,
    POINTER(CopyAttributes), POINTER(c_size_t), c_size_t, POINTER(c_size_t), c_void_p,
]  # fmt: skip


class CudaDriver:
    """Any thread may call it; each call says on which device. Raises CudaError."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, arguments in _SIGNATURES.items():
            getattr(library, name).argtypes = arguments
        self.has_batches = hasattr(library, _BATCH)
        if self.has_batches:
            getattr(library, _BATCH).argtypes = _BATCH_SIGNATURE
        self._contexts: dict[int, int] = {}
        self._lock = threading.Lock()
        self._call("cuInit", 0)
        self.uuids = [self._uuid(number) for number in range(self._count())]

    def can_access(self, device: int, other: int) -> bool:
        """Whether a device reads the other's memory without the host's help."""
        found = c_int()
        self._call("cuDeviceCanAccessPeer", byref(found), self._device(device), self._device(other))
        return bool(found.value)

    def allocation(self, address: int, device: int) -> tuple[int, int]:
        """Return (address, bytes) of the allocation that an address is in."""
        base, nbytes = c_uint64(), c_size_t()
        with self._on(device):
            self._call("cuMemGetAddressRange_v2", byref(base), byref(nbytes), address)
        return base.value, nbytes.value

    def export(self, base: int, device: int) -> bytes:
        """Return the handle by which other processes open an allocation."""
        handle = IpcHandle()
        with self._on(device):
            self._call("cuIpcGetMemHandle", byref(handle), base)
        return bytes(handle)

    def open(self, handle: bytes, device: int) -> int:
        """Return where an allocation of another process is for one of our devices."""
        found = c_uint64()
        packed = IpcHandle.from_buffer_copy(handle)
        with self._on(device):
            self._call("cuIpcOpenMemHandle_v2", byref(found), packed, _LAZY_ENABLE_PEER_ACCESS)
        return found.value

    def close_handle(self, address: int, device: int) -> None:
        with self._on(device):
            self._call("cuIpcCloseMemHandle", address)

    def new_stream(self, device: int) -> int:
        found = c_void_p()
        with self._on(device):
            self._call("cuStreamCreate", byref(found), _NON_BLOCKING)
        return found.value or 0

    def synchronize(self, stream: int, device: int) -> None:
        """Return when nothing runs on a stream any more."""
        with self._on(device):
            self._call("cuStreamSynchronize", stream)

    def end_stream(self, stream: int, device: int) -> None:
        with self._on(device):
            self._call("cuStreamDestroy_v2", stream)

    def copy(self, copies: Copies, stream: int, device: int) -> None:
        """Queue copies. Host memory that is not pinned is copied before this returns."""
        with self._on(device):
            on_devices = copies.direction is Direction.DEVICE_TO_DEVICE
            if self.has_batches and on_devices and len(copies.lengths) > 1:
                self._copy_batch(copies, stream)
            else:
                self._copy_each(copies, stream)

    def mark(self, stream: int, device: int) -> int:
        """Return an event that comes when everything queued so far is done."""
        event = c_void_p()
        with self._on(device):
            self._call("cuEventCreate", byref(event), _DISABLE_TIMING)
            try:
                self._call("cuEventRecord", event, stream)
            except CudaError:
                self._call("cuEventDestroy_v2", event)
                raise
        return event.value or 0

    def has_come(self, event: int, device: int) -> bool:
        """Look for an event, and forget it when it has come, or never will."""
        with self._on(device):
            code = self._library.cuEventQuery(event)
            if code == _NOT_READY:
                return False
            self._call("cuEventDestroy_v2", event)
            self._check("cuEventQuery", code)
        return True

    def close(self) -> None:
        """Give the contexts back. Safe to call twice."""
        with self._lock:
            contexts, self._contexts = self._contexts, {}
        for device in contexts:
            self._call("cuDevicePrimaryCtxRelease_v2", self._device(device))

    def _copy_each(self, copies: Copies, stream: int) -> None:
        name = copies.direction.value
        triples = zip(
            copies.into.tolist(), copies.source.tolist(), copies.lengths.tolist(), strict=True
        )
        for into, source, length in triples:
            self._call(name, into, source, length, stream)

    def _copy_batch(self, copies: Copies, stream: int) -> None:
        """One call for thousands of ranges: queueing each by itself takes some microseconds."""
        arrays = [np.ascontiguousarray(a) for a in (copies.into, copies.source, copies.lengths)]
        attributes = CopyAttributes(source_order=_IN_STREAM_ORDER)
        first, failed = c_size_t(0), c_size_t()
        places = [array.ctypes.data for array in arrays]
        count = len(copies.lengths)
        self._call(
            _BATCH, *places, count, byref(attributes), byref(first), 1, byref(failed), stream
        )

    @contextmanager
    def _on(self, device: int) -> Iterator[None]:
        """Make a device's primary context this thread's for a moment."""
        self._call("cuCtxPushCurrent_v2", self._context(device))
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def _context(self, device: int) -> int:
        with self._lock:
            context = self._contexts.get(device)
            if context is None:
                found = c_void_p()
                self._call("cuDevicePrimaryCtxRetain", byref(found), self._device(device))
                context = self._contexts[device] = found.value or 0
        return context

    def _device(self, number: int) -> int:
        found = c_int()
        self._call("cuDeviceGet", byref(found), number)
        return found.value

    def _count(self) -> int:
        found = c_int()
        self._call("cuDeviceGetCount", byref(found))
        return found.value

    def _uuid(self, number: int) -> bytes:
        found = Uuid()
        self._call("cuDeviceGetUuid_v2", byref(found), self._device(number))
        return bytes(found)

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._library, name)(*arguments))

    def _check(self, name: str, code: int) -> None:
        if code:
            told = ctypes.c_char_p()
            self._library.cuGetErrorName(code, byref(told))
            shown = told.value.decode() if told.value else f"error {code}"
            raise CudaError(f"{name}: {shown}")


def load() -> CudaDriver:
    """Return the driver; InvalidValue where there is none, or no GPU."""
    remedy = "needs an NVIDIA GPU and its driver"
    try:
        driver = CudaDriver(ctypes.CDLL(_LIBRARY))
    except OSError as error:
        raise InvalidValue("transport", "cuda_ipc", f"{remedy} ({error})") from error
    if not driver.uuids:
        raise InvalidValue("transport", "cuda_ipc", f"{remedy}: there is no GPU")
    return driver
