"""Matrix products: a fused weight, the kernel that suits its device, and where its parts lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch.nn import functional

from stafette.workers.gpu.launching import applies
from stafette.workers.models import fused
from stafette.workers.models.fused import ALONE, Around
from stafette.workers.models.sharding import SOLO, TensorParallel


class Kernel(Protocol):
    """Returns x @ weight.T + bias."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


@runtime_checkable
class OneTokenKernel(Kernel, Protocol):
    """A product that takes a single token's norm, gate or residual along."""

    def one_token(self, x: torch.Tensor, around: Around = ALONE) -> torch.Tensor: ...


class DenseKernel:
    """What torch does on its own."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self._weight, self._bias)


class GpuKernel(DenseKernel):
    """torch's product, but for one token a kernel of our own."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.one_token(x) if len(x) == 1 else super().__call__(x)

    def one_token(self, x: torch.Tensor, around: Around = ALONE) -> torch.Tensor:
        return fused.gemv(x, self._weight, self._bias, around)


class PackedKernel:
    """A bfloat16 weight in oneDNN's own order: up to four times as fast at few rows."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return out


def dense_kernel(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Kernel:
    """Return the fastest kernel for a weight that already is where it is to run."""
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and _packs_bfloat16():
        return PackedKernel(weight, bias)
    return GpuKernel(weight, bias) if applies(weight) else DenseKernel(weight, bias)


def _packs_bfloat16() -> bool:
    """Whether this torch has the packed product, and this CPU what it needs (AVX-512, mostly)."""
    ops = torch.ops.mkldnn
    return hasattr(ops, "_reorder_linear_weight") and bool(ops._is_mkldnn_bf16_supported())


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix of the checkpoint within a fused one, and the piece of it that this rank holds."""

    name: str  # such as model.layers.0.self_attn.q_proj
    shape: tuple[int, int]  # of the whole matrix
    rows: slice
    columns: slice
    outputs: slice  # of the fused product


class Adapters(Protocol):
    """What a batch's LoRA adapters add to a product."""

    def add(self, parts: Sequence[Part], x: torch.Tensor, out: torch.Tensor) -> None: ...


class Linear:
    """One or more of the checkpoint's matrices, multiplied in one go."""

    def __init__(self, kernel: Kernel, parts: Sequence[Part], reduces: TensorParallel = SOLO):
        self._kernel = kernel
        self._reduces = reduces  # the ranks whose products add up to the whole
        self.parts = tuple(parts)

    @property
    def one_token(self) -> OneTokenKernel | None:
        """The kernel alone, where it is the whole product and can take more along."""
        whole = self._reduces.size == 1
        return self._kernel if whole and isinstance(self._kernel, OneTokenKernel) else None

    def __call__(self, x: torch.Tensor, adapters: Adapters | None = None) -> torch.Tensor:
        out = self._kernel(x)
        if adapters is not None:
            adapters.add(self.parts, x, out)
        return self._reduces.all_reduce(out)
