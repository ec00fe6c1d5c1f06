"""What GPTQ and AWQ checkpoints share: matrices in pieces, beside tensors that are stored plain."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stafette.workers.errors import CheckpointError
from stafette.workers.weights.checkpoint import GROUP, Bits, Checkpoint, GroupedWeight, Weight
from stafette.workers.weights.safetensors_dir import SafetensorsCheckpoint

Codes = npt.NDArray[np.uint8]  # [rows, columns], one code a byte
Floats = npt.NDArray[np.float32]

_PIECES = (".qweight", ".qzeros", ".scales", ".g_idx")


class PackedCheckpoint(Checkpoint):
    """Names a packed matrix `*.weight`, and unpacks it when it is loaded."""

    pieces: tuple[str, ...]  # of every packed matrix

    def __init__(self, plain: SafetensorsCheckpoint) -> None:
        self._plain = plain
        self.spec = plain.spec
        stored = list(plain.names())
        self._packed = {
            name.removesuffix("qweight") + "weight": name.removesuffix("qweight")
            for name in stored
            if name.endswith(".qweight")
        }
        self._others = [name for name in stored if not name.endswith(_PIECES)]
        self._check_pieces(frozenset(stored))

    @abstractmethod
    def unpack(self, prefix: str) -> Weight:
        """Return the matrix whose pieces' names start with `prefix`."""

    def names(self) -> Iterator[str]:
        yield from self._others
        yield from self._packed

    def load(self, name: str) -> Weight:
        prefix = self._packed.get(name)
        return self._plain.load(name) if prefix is None else self.unpack(prefix)

    def shape(self, name: str) -> tuple[int, ...]:
        prefix = self._packed.get(name)
        return self._plain.shape(name) if prefix is None else self.matrix_shape(prefix)

    @abstractmethod
    def matrix_shape(self, prefix: str) -> tuple[int, int]:
        """Return a packed matrix's rows and columns."""

    def integers(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
        """Return a tensor of packed codes, or of group numbers."""
        return self._piece(name, shape, torch.int32).numpy()

    def scales(self, name: str, shape: tuple[int, ...]) -> Floats:
        tensor = self._piece(name, shape, None)
        return tensor.to(torch.float32).numpy()

    def stored_shape(self, name: str) -> tuple[int, ...]:
        return self._plain.shape(name)

    def _piece(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None) -> torch.Tensor:
        tensor = self._plain.files.load(name)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(name, tuple(tensor.shape), f"must have the shape {shape}")
        if dtype is not None and tensor.dtype != dtype:
            raise CheckpointError(f"{name} dtype", str(tensor.dtype), f"must be {dtype}")
        return tensor.contiguous()

    def _check_pieces(self, stored: frozenset[str]) -> None:
        for prefix in self._packed.values():
            for piece in self.pieces:
                if prefix + piece not in stored:
                    remedy = "is missing beside its qweight; download the model again"
                    raise CheckpointError("tensor", prefix + piece, remedy)


def setting(config: Mapping[str, Any], key: str, allowed: tuple[Any, ...], default: Any) -> Any:
    """Return a setting of the quantization. CheckpointError when it is not an allowed one."""
    value = config.get(key, default)
    if value not in allowed:
        remedy = f"is not supported; supported are {', '.join(map(str, allowed))}"
        raise CheckpointError(f"quantization_config {key}", value, remedy)
    return value


def group_size(config: Mapping[str, Any], key: str = "group_size") -> int:
    """Return how many columns share a scale; -1 is all of them."""
    size = config.get(key, config.get("group_size", 128))
    if not isinstance(size, int) or isinstance(size, bool) or size < -1 or size == 0:
        remedy = "must be -1, or a whole number of at least 1"
        raise CheckpointError(f"quantization_config {key}", size, remedy)
    return size


def nibbles(packed: npt.NDArray[np.int32], order: tuple[int, ...] = tuple(range(8))) -> Codes:
    """Unpack the last axis: bits 4i.. of an int32 hold the value `order[i]` of its eight."""
    halves = packed.view(np.uint8).reshape(*packed.shape, 4)
    values = np.empty((*packed.shape, 8), np.uint8)
    for place, target in enumerate(order):
        byte = halves[..., place // 2]
        values[..., target] = byte >> 4 if place % 2 else byte & 0x0F
    return values.reshape(*packed.shape[:-1], -1)


def grouped(bits: Bits, codes: Codes, scale: Floats, zero: Floats, columns: int) -> GroupedWeight:
    """Return scale * (code - zero), with a scale and zero for each row and group of columns.

    `codes` are [rows, columns / 2] packed in pairs for 4 bits, and [rows, columns] for 8.
    """
    times = columns // scale.shape[1] // GROUP
    shift = np.float32(128 if bits == 8 else 0)  # GroupedWeight's 8-bit codes are signed
    scales = np.repeat(scale, times, axis=1)
    offsets = np.repeat(scale * (shift - zero), times, axis=1)
    stored = (codes ^ 0x80).view(np.int8) if bits == 8 else codes
    return GroupedWeight(bits, np.ascontiguousarray(stored), scales, offsets)
