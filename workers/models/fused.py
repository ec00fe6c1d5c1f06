"""Steps between a decoder's products, fused for a GPU; and whole products of one token.

Each function says what it computes; on a CPU the layers do the same with plain torch and never
come here (`launching.applies`). Under Triton's interpreter the kernels run on a CPU, for tests.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from stafette.workers.gpu.launching import early, options, power_of_2

_TILE = 8192  # elements that a program of gemv has in flight: four programs fill an SM
_WIDEST = 4096  # columns of a tile
_SWIGLU_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Around:
    """What a product of one token takes along."""

    norm: torch.Tensor | None = None  # x is normed with these weights first
    eps: float = 0.0
    residual: torch.Tensor | None = None  # is added last
    gated: bool = False  # the rows are gates, then ups: silu(gate) * up comes out


ALONE = Around()


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """The norms over each head of q and k."""

    q: torch.Tensor
    k: torch.Tensor
    eps: float


def add_rms_norm(
    x: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + added, and that normed."""
    total, normed = torch.empty_like(x), torch.empty_like(x)
    size = x.shape[-1]
    _kernels().add_rms_norm[(len(x),)](
        x.contiguous(),
        added.contiguous(),
        weight,
        total,
        normed,
        eps,
        ADDS=True,
        SIZE=size,
        PADDED=power_of_2(size),
        **options(8 if size > 4096 else 4, 1),
    )
    return total, normed


def norm_rope(
    heads: torch.Tensor,
    num_q_heads: int,
    norms: HeadNorms | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> None:
    """Norm and rotate [tokens, heads, head_dim] in place: q's heads, then k's.

    Tokens may be views of longer rows; cos and sin are those of rope.Rope.angles.
    """
    count, half = heads.shape[1], heads.shape[2] // 2
    num_warps = 8 if count * half > 2048 else 4
    _kernels().norm_rope[(len(heads),)](
        heads,
        norms.q if norms else heads,
        norms.k if norms else heads,
        cos,
        sin,
        norms.eps if norms else 0.0,
        heads.stride(0),
        cos.stride(0),
        Q_HEADS=num_q_heads,
        HEADS=count,
        HEADS_PADDED=power_of_2(count),
        HALF=half,
        HALF_PADDED=power_of_2(half),
        NORM=norms is not None,
        **early(heads.device),
        **options(num_warps, 1),
    )


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up of rows that are all gates, then all ups."""
    tokens, size = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty((tokens, size))
    grid = tokens, -(-size // _SWIGLU_BLOCK)
    _kernels().silu_and_mul[grid](
        gate_up.contiguous(), out, SIZE=size, BLOCK=_SWIGLU_BLOCK, **options(4, 1)
    )
    return out


def gemv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, around: Around = ALONE
) -> torch.Tensor:
    """Return one token's product, [1, rows], or [1, rows / 2] where it is gated."""
    rows, columns = weight.shape[0] // (1 + around.gated), weight.shape[1]
    width = min(power_of_2(columns), _WIDEST)
    height = max(1, _TILE * 2 // weight.itemsize // width // (1 + around.gated))
    out = x.new_empty((1, rows))
    _kernels().gemv[(-(-rows // height),)](
        x,
        weight,
        *around_tensors(x, bias, around),
        out,
        around.eps,
        ROWS=rows,
        COLUMNS=columns,
        BLOCK_ROWS=height,
        BLOCK_COLUMNS=width,
        **around_switches(bias, around),
        **early(x.device),
        **options(4, 1),
    )
    return out


def around_tensors(
    x: torch.Tensor, bias: torch.Tensor | None, around: Around
) -> tuple[torch.Tensor, ...]:
    """Return norm, bias and residual for a launch; x stands in for what there is not."""
    given = around.norm, bias, around.residual
    return tuple(x if tensor is None else tensor for tensor in given)


def around_switches(bias: torch.Tensor | None, around: Around) -> dict[str, Any]:
    return {
        "NORM": around.norm is not None,
        "BIAS": bias is not None,
        "RESIDUAL": around.residual is not None,
        "GATED": around.gated,
    }


def _kernels() -> ModuleType:
    from stafette.workers.models import fused_kernels

    return fused_kernels
