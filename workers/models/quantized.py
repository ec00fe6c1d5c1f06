"""Matrices of 4-bit and 8-bit codes that stay packed in a GPU's memory."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from stafette.workers.gpu.launching import early, interpreting, options, runs_on
from stafette.workers.models.fused import ALONE, Around, around_switches, around_tensors
from stafette.workers.weights.checkpoint import GROUP, GroupedWeight, Weight

_GEMV_BYTES = 4096  # of codes that a program has in flight
_FEW_TOKENS = 32  # up to here a product only streams weights


class PackedLinear:
    """x @ weight.T + bias with a weight that is unpacked in registers. It is a linear.Kernel."""

    def __init__(
        self,
        weight: GroupedWeight,
        bias: torch.Tensor | None,
        device: torch.device,
    ) -> None:
        self.shape, self.bits = weight.shape, weight.bits
        self.bias = None if bias is None else bias.to(device)
        codes = torch.from_numpy(np.ascontiguousarray(weight.codes)).to(device)
        self.codes = _halved(codes) if weight.bits == 4 else codes
        self.scale = _narrow(weight.scale).to(device)
        self.offset = None if weight.offset is None else _narrow(weight.offset).to(device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.one_token(x) if len(x) == 1 else self._many(x)

    def one_token(self, x: torch.Tensor, around: Around = ALONE) -> torch.Tensor:
        """Return [1, rows], or [1, rows / 2] where it is gated."""
        rows, columns = self.shape[0] // (1 + around.gated), self.shape[1]
        groups = min(1 << (columns // GROUP - 1).bit_length(), 128)
        height = max(1, _GEMV_BYTES // (groups * 4 * self.bits) // (1 + around.gated))
        out = x.new_empty((1, rows))
        norm, bias, residual = around_tensors(x, self.bias, around)
        _kernels().gemv_grouped[(-(-rows // height),)](
            x,
            *self._weight(),
            norm,
            bias,
            residual,
            out,
            around.eps,
            BLOCK_ROWS=height,
            BLOCK_GROUPS=groups,
            **self._constants(rows),
            **around_switches(self.bias, around),
            **early(x.device),
            **options(4, 1),
        )
        return out

    def _many(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.shape[0]
        out = x.new_empty((len(x), rows))
        few = len(x) <= _FEW_TOKENS
        block_tokens, block_rows = (16 if len(x) <= 16 else 32, 32) if few else (64, 64)
        grid = -(-len(x) // block_tokens), -(-rows // block_rows)
        _kernels().gemm_grouped[grid](
            x,
            *self._weight(),
            x if self.bias is None else self.bias,
            out,
            len(x),
            x.stride(0),
            BLOCK_TOKENS=block_tokens,
            BLOCK_ROWS=block_rows,
            BLOCK_BYTES=64,
            BIAS=self.bias is not None,
            COMPUTE=_dtypes()[torch.float32 if interpreting() else x.dtype],
            **self._constants(rows),
            **options(4, 4),
        )
        return out

    def _weight(self) -> tuple[torch.Tensor, ...]:
        return self.codes, self.scale, self.scale if self.offset is None else self.offset

    def _constants(self, rows: int) -> dict[str, int]:
        columns, offset = self.shape[1], self.offset is not None
        return {"ROWS": rows, "COLUMNS": columns, "BITS": self.bits, "OFFSET": offset}


def linear_from(
    pieces: Sequence[Weight], bias: torch.Tensor | None, device: torch.device
) -> PackedLinear | None:
    """Return one product of matrices stacked up; None where they cannot stay packed."""
    grouped = [piece for piece in pieces if isinstance(piece, GroupedWeight)]
    if len(grouped) < len(pieces) or not runs_on(device):
        return None
    joined = join_rows(grouped)
    return None if joined is None else PackedLinear(joined, bias, device)


def join_rows(pieces: Sequence[GroupedWeight]) -> GroupedWeight | None:
    """Put matrices one below the other; None when they are packed in different ways."""
    if len({piece.bits for piece in pieces}) > 1:
        return None
    offsets = [piece.offset for piece in pieces]
    if any(offset is not None for offset in offsets):
        filled = [np.zeros_like(p.scale) if p.offset is None else p.offset for p in pieces]
        offset = np.concatenate(filled)
    else:
        offset = None
    codes = np.concatenate([piece.codes for piece in pieces])
    scale = np.concatenate([piece.scale for piece in pieces])
    return GroupedWeight(pieces[0].bits, codes, scale, offset)


def _halved(codes: torch.Tensor) -> torch.Tensor:
    """Repack 4-bit groups: from neighbours in a byte to columns j and j + 16."""
    rows = len(codes)
    columns = torch.stack((codes & 15, codes >> 4), -1).view(rows, -1, 2, GROUP // 2)
    return (columns[:, :, 0] | columns[:, :, 1] << 4).reshape(codes.shape)


def _narrow(values: np.ndarray) -> torch.Tensor:
    """Return float16 where that loses nothing: it is half the traffic."""
    wide = torch.from_numpy(np.ascontiguousarray(values))
    half = wide.half()
    return half if torch.equal(half.float(), wide) else wide


def _kernels() -> ModuleType:
    from stafette.workers.models import quantized_kernels

    return quantized_kernels


def _dtypes() -> dict[torch.dtype, Any]:
    from stafette.workers.gpu.shared_kernels import DTYPES

    return DTYPES
