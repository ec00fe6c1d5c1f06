"""AWQ checkpoints in their `gemm` layout: [columns, rows / 8], eight rows shuffled in an int32."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from stafette.workers.errors import CheckpointError
from stafette.workers.weights.checkpoint import GROUP, Weight
from stafette.workers.weights.packed import (
    PackedCheckpoint,
    group_size,
    grouped,
    nibbles,
    setting,
)
from stafette.workers.weights.safetensors_dir import SafetensorsCheckpoint

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of an int32 holds row _ORDER[i] of its eight
_PER_INT = 8


class AwqCheckpoint(PackedCheckpoint):
    """weight[row, column] = scale[group, row] * (code - zero[group, row])."""

    quantization = "awq"
    pieces = ("qweight", "qzeros", "scales")

    def __init__(self, plain: SafetensorsCheckpoint, config: Mapping[str, Any]) -> None:
        setting(config, "bits" if "bits" in config else "w_bit", (4,), 4)
        setting(config, "version", ("gemm", "GEMM"), "gemm")
        self._group_size = group_size(config, "q_group_size")
        super().__init__(plain)

    def matrix_shape(self, prefix: str) -> tuple[int, int]:
        columns, packed = self.stored_shape(prefix + "qweight")
        return packed * _PER_INT, columns

    def unpack(self, prefix: str) -> Weight:
        rows, columns = self.matrix_shape(prefix)
        size = columns if self._group_size == -1 else self._group_size
        if size % GROUP or columns % size:
            remedy = f"must be a multiple of {GROUP} that divides the {columns} columns"
            raise CheckpointError("quantization_config group_size", size, remedy)
        groups, packed_rows = columns // size, rows // _PER_INT
        by_column = nibbles(self.integers(prefix + "qweight", (columns, packed_rows)), _ORDER)
        pairs = by_column[0::2] | (by_column[1::2] << 4)
        zero = nibbles(self.integers(prefix + "qzeros", (groups, packed_rows)), _ORDER)
        scale = self.scales(prefix + "scales", (groups, rows))
        codes = np.ascontiguousarray(pairs.T)
        return grouped(4, codes, scale.T, zero.T.astype(np.float32), columns)
