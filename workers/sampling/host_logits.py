"""Logits on a CPU, in numpy: on one core as fast here as torch on two, and it never waits for a
team of threads, which costs milliseconds when another process wants a core.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stafette.workers.sampling.logits import (
    FOLD,
    Bools,
    Floats32,
    Ints,
    Logits,
    Scaled,
    Weights,
    blocks_of,
    slice_of,
)

_CACHED_LOGITS = 1 << 19  # copies of so many stay in a core's cache


class HostLogits(Logits):
    def __init__(self, values: Floats32) -> None:
        self._values = values
        self.rows_at_once = max(1, _CACHED_LOGITS // values.shape[1])

    def __len__(self) -> int:
        return len(self._values)

    def rows(self, rows: Sequence[int]) -> "HostLogits":
        return HostLogits(self._values[slice_of(rows) or list(rows)])

    def copy(self) -> "HostLogits":
        return HostLogits(self._values.copy())

    def take(self, rows: Ints, tokens: Ints) -> Floats32:
        taken: Floats32 = self._values[rows, tokens]
        return taken

    def put(self, rows: Ints, tokens: Ints, values: Floats32) -> None:
        self._values[rows, tokens] = values

    def keep(self, row: int, allowed: Bools) -> None:
        self._values[row, ~allowed] = -np.inf

    def argmax(self) -> tuple[Ints, Floats32]:
        best: Ints = self._values.argmax(-1)
        return best, self.take(np.arange(len(best)), best)

    def count_above(self, values: Floats32) -> Ints:
        counts: Ints = np.count_nonzero(self._values > values[:, None], axis=-1)
        return counts

    def scaled(self, temperature: Floats32) -> "HostScaled":
        rows, vocab = self._values.shape
        width, blocks = blocks_of(vocab)
        padded = _scratch.array("scaled", rows, width * blocks)
        padded[:, vocab:] = -np.inf
        np.divide(self._values, temperature[:, None], out=padded[:, :vocab])
        peaks = _fold(np.maximum, padded, blocks, np.float32)
        return HostScaled(padded, peaks, peaks.max(-1))


class HostScaled(Scaled):
    """Holds until its thread scales logits again: the memory is used anew."""

    def __init__(self, padded: Floats32, peaks: Floats32, tops: Floats32) -> None:
        self._padded = padded
        self.peaks = peaks
        self.tops = tops

    def rows(self, rows: Ints) -> "HostScaled":
        if len(rows) == len(self.tops):
            return self
        return HostScaled(self._padded[rows], self.peaks[rows], self.tops[rows])

    def values(self, row: int) -> Floats32:
        values: Floats32 = self._padded[row]
        return values

    def at_least(self, bounds: Floats32) -> tuple[Ints, Ints, Floats32]:
        found = np.flatnonzero(self._padded >= bounds[:, None])
        rows, tokens = np.divmod(found, self._padded.shape[1])
        return rows, tokens, self._padded.reshape(-1)[found]

    def weigh(self) -> "HostWeights":
        weights = _scratch.array("weights", *self._padded.shape)
        np.subtract(self._padded, self.tops[:, None], out=weights)
        return HostWeights(np.exp(weights, out=weights), self.peaks.shape[1])


class HostWeights(Weights):
    """Holds until its thread weighs again."""

    def __init__(self, weights: Floats32, blocks: int) -> None:
        self._blocked = weights.reshape(len(weights), -1, blocks)
        self.sums = _fold(np.add, weights, blocks, np.float64)

    def blocks(self, chosen: Ints) -> Floats32:
        inside: Floats32 = self._blocked[np.arange(len(chosen)), :, chosen]
        return inside


def _fold(operation: np.ufunc, padded: Floats32, blocks: int, dtype: npt.DTypeLike) -> Any:
    """Reduce each block, in long runs of memory: FOLD entries apart first, the rest after."""
    once = operation.reduce(padded.reshape(len(padded), FOLD, -1), axis=1)
    return operation.reduce(once.reshape(len(padded), -1, blocks), axis=1, dtype=dtype)


class _Scratch(threading.local):
    """Memory kept between steps: fresh megabytes cost more in page faults than in arithmetic."""

    def __init__(self) -> None:
        self._kept: dict[str, Floats32] = {}

    def array(self, name: str, rows: int, columns: int) -> Floats32:
        kept = self._kept.get(name)
        if kept is None or kept.size < rows * columns:
            kept = self._kept[name] = np.empty(rows * columns, np.float32)
        return kept[: rows * columns].reshape(rows, columns)


_scratch = _Scratch()
