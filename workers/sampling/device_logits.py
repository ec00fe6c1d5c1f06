"""Logits on an accelerator, in torch: only a row's likeliest tokens and its block sums leave it."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

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


class DeviceLogits(Logits):
    rows_at_once = 256

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def rows(self, rows: Sequence[int]) -> "DeviceLogits":
        wanted = slice_of(rows)
        return DeviceLogits(self._values[wanted or self._on(np.array(rows, np.int64))])

    def copy(self) -> "DeviceLogits":
        return DeviceLogits(self._values.clone())

    def take(self, rows: Ints, tokens: Ints) -> Floats32:
        taken: Floats32 = _host(self._values[self._on(rows), self._on(tokens)])
        return taken

    def put(self, rows: Ints, tokens: Ints, values: Floats32) -> None:
        self._values[self._on(rows), self._on(tokens)] = self._on(values)

    def keep(self, row: int, allowed: Bools) -> None:
        self._values[row].masked_fill_(self._on(~allowed), -torch.inf)

    def argmax(self) -> tuple[Ints, Floats32]:
        best = self._values.argmax(-1)
        return _host(best), _host(self._values.gather(1, best[:, None])[:, 0])

    def count_above(self, values: Floats32) -> Ints:
        counts: Ints = _host((self._values > self._on(values)[:, None]).sum(-1))
        return counts

    def scaled(self, temperature: Floats32) -> "DeviceScaled":
        rows, vocab = self._values.shape
        width, blocks = blocks_of(vocab)
        padded = self._values.new_full((rows, width * blocks), -torch.inf)
        torch.div(self._values, self._on(temperature)[:, None], out=padded[:, :vocab])
        peaks = _host(padded.view(rows, width, blocks).amax(1))
        return DeviceScaled(padded, peaks, peaks.max(-1))

    def _on(self, values: npt.NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._values.device)


class DeviceScaled(Scaled):
    def __init__(self, padded: torch.Tensor, peaks: Floats32, tops: Floats32) -> None:
        self._padded = padded
        self.peaks = peaks
        self.tops = tops

    def rows(self, rows: Ints) -> "DeviceScaled":
        if len(rows) == len(self.tops):
            return self
        wanted = torch.from_numpy(rows).to(self._padded.device)
        return DeviceScaled(self._padded[wanted], self.peaks[rows], self.tops[rows])

    def values(self, row: int) -> Floats32:
        values: Floats32 = _host(self._padded[row])
        return values

    def at_least(self, bounds: Floats32) -> tuple[Ints, Ints, Floats32]:
        limits = torch.from_numpy(bounds).to(self._padded.device)
        rows, tokens = (self._padded >= limits[:, None]).nonzero(as_tuple=True)
        return _host(rows), _host(tokens), _host(self._padded[rows, tokens])

    def weigh(self) -> "DeviceWeights":
        tops = torch.from_numpy(self.tops).to(self._padded.device)
        return DeviceWeights((self._padded - tops[:, None]).exp_(), self.peaks.shape[1])


class DeviceWeights(Weights):
    def __init__(self, weights: torch.Tensor, blocks: int) -> None:
        rows = len(weights)
        self._blocked = weights.view(rows, -1, blocks)
        once = reduce(torch.add, weights.view(rows, FOLD, -1).unbind(1))
        self.sums = _host(once.view(rows, -1, blocks).double().sum(1))

    def blocks(self, chosen: Ints) -> Floats32:
        wanted = torch.from_numpy(chosen).to(self._blocked.device)
        rows = torch.arange(len(chosen), device=wanted.device)
        inside: Floats32 = _host(self._blocked[rows, :, wanted])
        return inside


def _host(values: torch.Tensor) -> Any:
    return values.cpu().numpy()
