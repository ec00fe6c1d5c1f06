"""What can be registered: shared memory, arrays, tensors, files. Each becomes a LocalRegion."""

import ctypes
import os
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.memory import SharedMemory
from stafette.kvtransfer.regions import LocalRegion, RegionInfo, RegionKind


@dataclass(frozen=True, slots=True)
class FileMemory:
    """A part of an open file."""

    fd: int
    nbytes: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Memory on a GPU that another process of ours has made and exported."""

    address: int  # here
    nbytes: int
    device: int  # here
    exported: object


@runtime_checkable
class Tensor(Protocol):
    """What we ask of a torch tensor, without torch."""

    def data_ptr(self) -> int: ...
    def is_contiguous(self) -> bool: ...
    def numel(self) -> int: ...
    def element_size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Shape:
    """What the registrar says of the memory."""

    name: str
    block_bytes: int  # 0: the whole region is one block
    generation: int
    layout: object = None


def region_of(buffer: object, shape: Shape) -> LocalRegion:
    """Return the region that a buffer is; InvalidValue for what cannot be one."""
    match buffer:
        case SharedMemory():
            info = _info(shape, "host", buffer.nbytes)
            address = buffer.array.ctypes.data
            return LocalRegion(info, buffer.array, address, shared=buffer, owner=buffer)
        case FileMemory():
            return _file_region(buffer, shape)
        case GpuMemory():
            info = _info(shape, "cuda", buffer.nbytes, buffer.device)
            return LocalRegion(info, None, buffer.address, exported=buffer.exported)
        case Tensor():
            return _tensor_region(buffer, shape)
    return _array_region(buffer, shape)


def _info(shape: Shape, kind: RegionKind, nbytes: int, device: int = 0) -> RegionInfo:
    block_bytes = shape.block_bytes or nbytes
    return RegionInfo(shape.name, kind, nbytes, block_bytes, shape.generation, device, shape.layout)


def _file_region(file: FileMemory, shape: Shape) -> LocalRegion:
    size = os.fstat(file.fd).st_size
    if file.offset < 0 or file.offset + file.nbytes > size:
        remedy = f"must lie within the file's {size} bytes"
        raise InvalidValue("file", (file.offset, file.nbytes), remedy)
    return LocalRegion(_info(shape, "file", file.nbytes), None, file.offset, fd=file.fd, owner=file)


def _tensor_region(tensor: Tensor, shape: Shape) -> LocalRegion:
    if not tensor.is_contiguous():
        raise InvalidValue("tensor", type(tensor).__name__, "must be contiguous")
    nbytes, address = tensor.numel() * tensor.element_size(), tensor.data_ptr()
    device = getattr(tensor, "device", None)
    kind = getattr(device, "type", "cpu")
    if kind == "cuda":
        index = getattr(device, "index", None) or 0
        return LocalRegion(_info(shape, "cuda", nbytes, index), None, address, owner=tensor)
    if kind != "cpu":
        raise InvalidValue("tensor.device", str(device), "must be cpu or cuda")
    info = _info(shape, "host", nbytes)
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
    return LocalRegion(info, memory, address, owner=tensor)


def _array_region(buffer: object, shape: Shape) -> LocalRegion:
    try:
        view = memoryview(buffer)  # type: ignore[arg-type]
    except TypeError:
        remedy = "must be a SharedMemory, a FileMemory, a tensor or a buffer"
        raise InvalidValue("buffer", type(buffer).__name__, remedy) from None
    if not view.c_contiguous or view.readonly or not view.nbytes:
        shown = f"{type(buffer).__name__} of {view.nbytes} bytes"
        raise InvalidValue("buffer", shown, "must be contiguous, writable and not empty")
    memory = np.frombuffer(view.cast("B"), np.uint8)
    info = _info(shape, "host", view.nbytes)
    return LocalRegion(info, memory, memory.ctypes.data, owner=buffer)
