"""Reads a GGUF file's header over a memory map: its metadata, and where each tensor's bytes lie.

Everything is checked against the file's length before it is touched, so a damaged file gives a
CheckpointError and no large allocation.
"""

import math
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stafette.workers.errors import CheckpointError
from stafette.workers.weights.gguf_formats import FORMATS

Bytes = npt.NDArray[np.uint8]

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of the file; `shape` has the slowest dimension first."""

    name: str
    shape: tuple[int, ...]
    kind: int  # the key of gguf_formats.FORMATS
    start: int  # in the file
    num_bytes: int


class GgufFile:
    """The header of one file; tensor bytes are mapped, and read when they are used."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._map = _map_file(self.path)
        cursor = _Cursor(self._map, self.path)
        num_tensors, num_fields = _read_preamble(cursor)
        self.metadata = _read_metadata(cursor, num_fields)
        self.tensors = _read_tensors(cursor, num_tensors, self._alignment())

    def rows(self, tensor: GgufTensor) -> Bytes:
        """Return a tensor's bytes, [rows, bytes of a row], without a copy."""
        flat = np.frombuffer(self._map, np.uint8, tensor.num_bytes, tensor.start)
        return flat.reshape(math.prod(tensor.shape[:-1]), -1)

    def _alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            raise CheckpointError(
                "general.alignment", alignment, "must be a power of two from 8 on"
            )
        return alignment


class _Cursor:
    """Walks the header. Every step past the end of the file is an error."""

    def __init__(self, data: mmap.mmap, path: str) -> None:
        self.data, self.path = data, path
        self.at = 0

    def take(self, layout: str) -> Any:
        try:
            (value,) = struct.unpack_from(layout, self.data, self.at)
        except (struct.error, OverflowError):
            raise self.truncated() from None
        self.at += struct.calcsize(layout)
        return value

    def text(self) -> str:
        length = self.take("<Q")
        return _decode(self.span(length), self.path)

    def span(self, length: int) -> bytes:
        start = self.at
        self.skip(length)
        return self.data[start : self.at]

    def skip(self, length: int) -> None:
        if length > len(self.data) - self.at:
            raise self.truncated()
        self.at += length

    def value(self) -> Any:
        kind = self.take("<I")
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        return self.take(_scalar(kind, self.path))

    def truncated(self) -> CheckpointError:
        remedy = f"ends early: {len(self.data)} bytes do not hold its header; download it again"
        return CheckpointError("model", self.path, remedy)

    def _array(self) -> Sequence[Any]:
        kind, length = self.take("<I"), self.take("<Q")
        if kind == _STRING:
            return self._texts(length)
        dtype = np.dtype(_scalar(kind, self.path))
        start = self.at
        self.skip(length * dtype.itemsize)
        return np.frombuffer(self.data, dtype, length, start)  # type: ignore[return-value]

    def _texts(self, length: int) -> "GgufTexts":
        start, at = self.at, self.at
        unpack, data = struct.Struct("<Q").unpack_from, self.data
        try:
            for _ in range(length):
                at += 8 + unpack(data, at)[0]
        except (struct.error, OverflowError):
            raise self.truncated() from None
        self.skip(at - start)
        return GgufTexts(self, start, length)


class GgufTexts(Sequence[str]):
    """An array of strings, such as a vocabulary; decoded when it is first looked into."""

    def __init__(self, cursor: _Cursor, start: int, length: int) -> None:
        self._cursor, self._start, self._length = cursor, start, length
        self._texts: list[str] | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        return self.to_list()[index]

    def to_list(self) -> list[str]:
        if self._texts is None:
            self._texts = self._decode_all()
        return self._texts

    def _decode_all(self) -> list[str]:
        texts, at = [], self._start
        unpack, data, path = struct.Struct("<Q").unpack_from, self._cursor.data, self._cursor.path
        for _ in range(self._length):
            stop = at + 8 + unpack(data, at)[0]
            texts.append(_decode(data[at + 8 : stop], path))
            at = stop
        return texts


def _map_file(path: str) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise CheckpointError("model", path, "is empty; download it again")
            # A private map: torch wants writable memory, and the file stays as it is.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise CheckpointError("model", path, f"cannot be read: {error.strerror}") from error


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
    """Return how many tensors and how many metadata fields follow."""
    magic = cursor.span(min(len(MAGIC), len(cursor.data)))
    if magic != MAGIC:
        remedy = f"is not a GGUF file: it starts with {magic!r}, not {MAGIC!r}"
        raise CheckpointError("model", cursor.path, remedy)
    version = cursor.take("<I")
    if version not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        raise CheckpointError("GGUF version", version, f"only {known} are read: convert it again")
    return cursor.take("<Q"), cursor.take("<Q")


def _read_metadata(cursor: _Cursor, num_fields: int) -> dict[str, Any]:
    metadata = {}
    for _ in range(num_fields):
        key = cursor.text()
        metadata[key] = cursor.value()
    return metadata


def _read_tensors(cursor: _Cursor, num_tensors: int, alignment: int) -> dict[str, GgufTensor]:
    described = [_describe(cursor) for _ in range(_bounded(cursor, num_tensors))]
    data_start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in described:
        if name in tensors:
            raise CheckpointError("tensor", name, "is in the file twice; download it again")
        if offset % alignment:
            raise CheckpointError(name, offset, f"does not start on a multiple of {alignment}")
        num_bytes = _num_bytes(name, shape, kind)
        if data_start + offset + num_bytes > len(cursor.data):
            raise _cut_short(cursor, name, data_start + offset + num_bytes)
        tensors[name] = GgufTensor(name, shape, kind, data_start + offset, num_bytes)
    return tensors


def _bounded(cursor: _Cursor, num_tensors: int) -> int:
    if num_tensors > len(cursor.data):
        raise cursor.truncated()
    return num_tensors


def _describe(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text()
    dimensions = cursor.take("<I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise CheckpointError(name, dimensions, f"must have 1 to {_MAX_DIMENSIONS} dimensions")
    shape = tuple(cursor.take("<Q") for _ in range(dimensions))[::-1]
    return name, shape, cursor.take("<I"), cursor.take("<Q")


def _num_bytes(name: str, shape: tuple[int, ...], kind: int) -> int:
    if kind not in FORMATS:
        known = ", ".join(form.name for form in FORMATS.values())
        raise CheckpointError(f"{name} ggml type", kind, f"is not supported; supported are {known}")
    form = FORMATS[kind]
    if not all(shape) or shape[-1] % form.elements:
        remedy = f"rows of {form.name} hold a multiple of {form.elements} elements, and not none"
        raise CheckpointError(f"{name} shape", shape, remedy)
    return math.prod(shape) // form.elements * form.num_bytes


def _cut_short(cursor: _Cursor, name: str, needed: int) -> CheckpointError:
    remedy = (
        f"ends early: {name} needs {needed} bytes, it has {len(cursor.data)}; download it again"
    )
    return CheckpointError("model", cursor.path, remedy)


def _scalar(kind: int, path: str) -> str:
    if kind not in _SCALARS:
        remedy = f"holds metadata of a type that GGUF does not define ({kind}); download it again"
        raise CheckpointError("model", path, remedy)
    return _SCALARS[kind]


def _decode(data: bytes, path: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError("model", path, f"holds text that is not UTF-8: {error}") from error
