"""What every checkpoint format offers the models: a spec, and tensors by their Hugging Face name.

Names are those of Hugging Face's Llama, such as `model.layers.0.self_attn.q_proj.weight`; a reader
of another format translates, and puts q and k rows into Hugging Face's (half-split rope) order.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from stafette.workers.models.spec import ModelSpec

GROUP = 32  # columns that share a scale and an offset in GroupedWeight
Bits = Literal[4, 8]


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """A quantized matrix [rows, columns]: weight = scale * code + offset, per row and 32 columns.

    Holds Q4_0, Q4_1, Q8_0, GPTQ and AWQ alike, without loss against their own definitions:
    codes are unsigned 4-bit (two a byte, column 2i in the low half) or signed 8-bit.
    """

    bits: Bits
    codes: np.ndarray  # bits 4: uint8 [rows, columns / 2]; bits 8: int8 [rows, columns]
    scale: np.ndarray  # float32 [rows, columns / GROUP]
    offset: np.ndarray | None  # float32, like scale; None: zero everywhere

    @property
    def shape(self) -> tuple[int, int]:
        rows, packed = self.codes.shape
        return rows, packed * 8 // self.bits

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        rows, columns = self.shape
        if self.bits == 4:
            low, high = self.codes & 0x0F, self.codes >> 4
            codes = np.stack((low, high), axis=-1).reshape(rows, columns)
        else:
            codes = self.codes
        values = codes.reshape(rows, -1, GROUP).astype(np.float32) * self.scale[:, :, None]
        if self.offset is not None:
            values += self.offset[:, :, None]
        return torch.from_numpy(values.reshape(rows, columns)).to(dtype)

    def row_slice(self, start: int, stop: int) -> "GroupedWeight":
        offset = None if self.offset is None else self.offset[start:stop]
        return GroupedWeight(self.bits, self.codes[start:stop], self.scale[start:stop], offset)


Weight = torch.Tensor | GroupedWeight


class Checkpoint(ABC):
    """A model's files, opened and checked; tensors are read when asked for."""

    spec: ModelSpec
    quantization: Literal["none", "gptq", "awq", "gguf"]

    @abstractmethod
    def names(self) -> Iterator[str]:
        """Return every tensor's Hugging Face name (`*.weight`, `*.bias`)."""

    @abstractmethod
    def load(self, name: str) -> Weight:
        """Return one tensor; quantized matrices stay quantized. CheckpointError when missing."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; most formats know it from their header."""
        return tuple(self.load(name).shape)

    def load_dense(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        weight = self.load(name)
        return weight.dequantize(dtype) if isinstance(weight, GroupedWeight) else weight.to(dtype)

    def __contains__(self, name: str) -> bool:
        return name in set(self.names())
