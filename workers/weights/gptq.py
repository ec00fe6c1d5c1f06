"""GPTQ checkpoints: codes packed down the columns, zero points stored one too low (version 1).

weight[row, column] = scale[group, row] * (code[row, column] - zero[group, row]), where a group is
`group_size` neighbouring columns, or what g_idx says when columns were ordered by importance.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stafette.workers.errors import CheckpointError
from stafette.workers.weights.checkpoint import GROUP, Bits, Weight
from stafette.workers.weights.packed import (
    Codes,
    Floats,
    PackedCheckpoint,
    group_size,
    grouped,
    nibbles,
    setting,
)
from stafette.workers.weights.safetensors_dir import SafetensorsCheckpoint


class GptqCheckpoint(PackedCheckpoint):
    """Stays quantized where groups are neighbours; a shuffled matrix is made dense."""

    quantization = "gptq"
    pieces = ("qweight", "qzeros", "scales")

    def __init__(self, plain: SafetensorsCheckpoint, config: Mapping[str, Any]) -> None:
        self._bits: Bits = setting(config, "bits", (4, 8), None)
        self._group_size = group_size(config)
        known = ("gptq", "gptq_v2")
        checkpoint_format = setting(config, "checkpoint_format", known, "gptq")
        self._zero_bias = 1 if checkpoint_format == "gptq" else 0
        super().__init__(plain)

    def matrix_shape(self, prefix: str) -> tuple[int, int]:
        packed, rows = self.stored_shape(prefix + "qweight")
        return rows, packed * self._per_int

    def unpack(self, prefix: str) -> Weight:
        rows, columns = self.matrix_shape(prefix)
        size = columns if self._group_size == -1 else self._group_size
        groups = -(-columns // size)
        packed = self.integers(prefix + "qweight", (columns // self._per_int, rows))
        codes = _bytes_by_row(packed)
        scale = self.scales(prefix + "scales", (groups, rows)).T
        zero = self._zeros(prefix, groups, rows).T
        of_column = self._groups_of_columns(prefix, columns, size, groups)
        if size % GROUP == 0 and columns % size == 0 and _in_order(of_column, size):
            return grouped(self._bits, codes, scale, zero, columns)
        return _dense(_single(self._bits, codes), scale, zero, of_column)

    @property
    def _per_int(self) -> int:
        return 32 // self._bits

    def _zeros(self, prefix: str, groups: int, rows: int) -> Floats:
        packed = self.integers(prefix + "qzeros", (groups, rows // self._per_int))
        codes = nibbles(packed) if self._bits == 4 else packed.view(np.uint8)
        return codes.astype(np.float32) + np.float32(self._zero_bias)

    def _groups_of_columns(
        self, prefix: str, columns: int, size: int, groups: int
    ) -> npt.NDArray[np.int64]:
        if prefix + "g_idx" not in self._plain.files:
            return np.arange(columns) // size
        given = self.integers(prefix + "g_idx", (columns,)).astype(np.int64)
        if given.min() < 0 or given.max() >= groups:
            remedy = f"must number groups from 0 to {groups - 1}; download the model again"
            raise CheckpointError(prefix + "g_idx", [given.min(), given.max()], remedy)
        return given


def _bytes_by_row(packed: npt.NDArray[np.int32]) -> Codes:
    """Turn [columns / n, rows] ints into rows of bytes: an int's bytes are neighbouring columns."""
    ints, rows = packed.shape
    in_bytes = packed.view(np.uint8).reshape(ints, rows, 4)
    return np.ascontiguousarray(in_bytes.transpose(1, 0, 2)).reshape(rows, ints * 4)


def _in_order(of_column: npt.NDArray[np.int64], size: int) -> bool:
    return bool(np.array_equal(of_column, np.arange(len(of_column)) // size))


def _single(bits: Bits, codes: Codes) -> Codes:
    """Return one code a byte."""
    if bits == 8:
        return codes
    return np.stack((codes & 0x0F, codes >> 4), axis=-1).reshape(len(codes), -1)


def _dense(
    codes: Codes, scale: Floats, zero: Floats, of_column: npt.NDArray[np.int64]
) -> torch.Tensor:
    values = (codes.astype(np.float32) - zero[:, of_column]) * scale[:, of_column]
    return torch.from_numpy(values)
