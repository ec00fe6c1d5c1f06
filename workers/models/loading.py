"""Reads a checkpoint's tensors into the dtype, device and shard that a rank runs them in."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch

from stafette.workers.errors import CheckpointError
from stafette.workers.models.linear import Kernel, Linear, Part, dense_kernel
from stafette.workers.models.quantized import linear_from
from stafette.workers.models.sharding import TensorParallel
from stafette.workers.weights.checkpoint import GROUP, Checkpoint, GroupedWeight, Weight


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix as the checkpoint has it. Ranks share it by whole units of rows or columns."""

    name: str
    rows: int
    columns: int
    unit: int = 1
    biased: bool = False  # must have a bias; others may


class WeightLoader:
    """Loads one rank's weights; `prefix` is where in the model the names start."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, tp: TensorParallel
    ) -> None:
        self.spec = checkpoint.spec
        self.dtype, self.device, self.tp = dtype, device, tp
        self._checkpoint = checkpoint
        self._names = frozenset(checkpoint.names())
        self._prefix = ""

    def within(self, prefix: str) -> "WeightLoader":
        """Return a loader of the same files whose names start with `prefix`."""
        inner = copy(self)
        inner._prefix = self._prefix + prefix
        return inner

    def has(self, name: str) -> bool:
        return self._prefix + name in self._names

    def vector(self, name: str, size: int) -> torch.Tensor:
        """Return a whole vector, such as a norm's weight."""
        return self._dense(name, (size,)).to(self.device)

    def table(self, name: str, rows: int, columns: int) -> torch.Tensor:
        """Return a whole matrix to look rows up in."""
        return self._dense(name, (rows, columns)).to(self.device)

    def column(self, matrices: Sequence[Matrix]) -> Linear:
        """Fuse matrices whose outputs are shared out among the ranks."""
        pieces: list[Weight] = []
        biases: list[torch.Tensor | None] = []
        parts: list[Part] = []
        at = 0
        for matrix in matrices:
            start, stop = self._span(matrix.rows, matrix.unit)
            pieces.append(_rows(self._matrix(matrix), start, stop))
            bias = self._bias(matrix)
            biases.append(None if bias is None else bias[start:stop])
            outputs = slice(at, at + stop - start)
            parts.append(self._part(matrix, slice(start, stop), slice(None), outputs))
            at = outputs.stop
        return Linear(self._kernel(pieces, _joined(biases, pieces)), parts)

    def row(self, matrix: Matrix) -> Linear:
        """Return a matrix whose inputs are shared out among the ranks, and whose products add."""
        start, stop = self._span(matrix.columns, matrix.unit)
        piece = _columns(self._matrix(matrix), start, stop)
        bias = self._bias(matrix) if self.tp.rank == 0 else None
        everything = slice(0, matrix.rows)
        part = self._part(matrix, everything, slice(start, stop), everything)
        return Linear(self._kernel([piece], bias), [part], self.tp)

    def whole(self, matrix: Matrix) -> Linear:
        """Return a matrix that every rank holds entirely."""
        everything = slice(0, matrix.rows)
        part = self._part(matrix, everything, slice(None), everything)
        return Linear(self._kernel([self._matrix(matrix)], self._bias(matrix)), [part])

    def _kernel(self, pieces: Sequence[Weight], bias: torch.Tensor | None) -> Kernel:
        packed = linear_from(pieces, bias, self.device)
        if packed is not None:
            return packed
        dense = torch.cat([_dense(piece, self.dtype) for piece in pieces]).to(self.device)
        return dense_kernel(dense, None if bias is None else bias.to(self.device))

    def _span(self, size: int, unit: int) -> tuple[int, int]:
        start, stop = self.tp.span(size // unit)
        return start * unit, stop * unit

    def _part(self, matrix: Matrix, rows: slice, columns: slice, outputs: slice) -> Part:
        shape = matrix.rows, matrix.columns
        return Part(self._prefix + matrix.name, shape, rows, columns, outputs)

    def _matrix(self, matrix: Matrix) -> Weight:
        name = f"{self._prefix}{matrix.name}.weight"
        weight = self._checkpoint.load(name)
        _check_shape(name, tuple(weight.shape), (matrix.rows, matrix.columns))
        return weight

    def _bias(self, matrix: Matrix) -> torch.Tensor | None:
        name = f"{matrix.name}.bias"
        return self._dense(name, (matrix.rows,)) if matrix.biased or self.has(name) else None

    def _dense(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = self._checkpoint.load_dense(self._prefix + name, self.dtype)
        _check_shape(self._prefix + name, tuple(tensor.shape), shape)
        return tensor


def _check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise CheckpointError(name, shape, f"the model's configuration asks for {expected}")


def _dense(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    return weight.dequantize(dtype) if isinstance(weight, GroupedWeight) else weight.to(dtype)


def _rows(weight: Weight, start: int, stop: int) -> Weight:
    if isinstance(weight, GroupedWeight):
        return weight.row_slice(start, stop)
    return weight[start:stop]


def _columns(weight: Weight, start: int, stop: int) -> Weight:
    if not isinstance(weight, GroupedWeight):
        return weight[:, start:stop]
    if start % GROUP or stop % GROUP:
        return weight.dequantize()[:, start:stop]
    codes = weight.codes[:, start * weight.bits // 8 : stop * weight.bits // 8]
    groups = slice(start // GROUP, stop // GROUP)
    offset = None if weight.offset is None else weight.offset[:, groups]
    return GroupedWeight(weight.bits, codes, weight.scale[:, groups], offset)


def _joined(biases: Sequence[torch.Tensor | None], pieces: Sequence[Weight]) -> torch.Tensor | None:
    """Put the biases one after the other; a matrix without one counts as zeros."""
    given = [bias for bias in biases if bias is not None]
    if not given:
        return None
    pairs = zip(biases, pieces, strict=True)
    return torch.cat(
        [b if b is not None else torch.zeros(p.shape[0], dtype=given[0].dtype) for b, p in pairs]
    )
