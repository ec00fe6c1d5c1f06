"""Products on 8-bit integers for CPUs with VNNI, through torch alone: twice bfloat16's rate."""

import math

import torch

from stafette.workers.models.linear import PackedKernel

_LARGEST = 127  # of a weight's codes
_LARGEST_INPUT = 126  # one less, so that bfloat16's own rounding of x / scale never passes 127
_ZERO = 128  # the kernel takes inputs as unsigned
_TINY = 1e-20  # a row of zeros has a scale, too
ROTATED = 64  # columns at a time
_LEAST_OUTPUTS = 1024  # of fewer, rounding the inputs costs about what the product saves


class EightBitKernel:
    """x @ weight.T + bias for a weight of 8 bits or less, and bfloat16 inputs.

    Both are rotated in pieces of some columns by one orthogonal matrix, which leaves the product
    as it is and shares each large value out among its neighbours. (All of SmolLM2's layers in 8
    bits cost 0.3 % of perplexity with it, 2.4 % without.) Then each row gets a scale of its own,
    so no row depends on another.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._turn = hadamard(ROTATED)
        self._turning = PackedKernel(self._turn.bfloat16(), None)
        turned = (weight.float().view(-1, len(self._turn)) @ self._turn).view(weight.shape)
        self._scale = turned.abs().amax(1).clamp_(min=_TINY) / _LARGEST
        codes = (turned / self._scale[:, None]).round_().to(torch.int8)
        self._codes = torch.ops.onednn.qlinear_prepack(codes, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        turned = self._turning(x.reshape(-1, len(self._turn))).view(x.shape)
        scale = _largest(turned) / _LARGEST_INPUT
        codes = turned.div_(scale).round_().to(torch.int8).view(torch.uint8).bitwise_xor_(_ZERO)
        out = self._multiply(codes).mul_(scale)
        return out if self._bias is None else out.add_(self._bias)

    def _multiply(self, codes: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            codes,
            1.0,  # the rows' scales come after
            _ZERO,
            self._codes,
            self._scale,
            self._zeros,
            None,
            1.0,
            0,
            torch.bfloat16,
            "none",
            [],
            "",
        )
        return out


def hadamard(size: int) -> torch.Tensor:
    """Return Sylvester's matrix, orthogonal and symmetric; `size` is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix / math.sqrt(size)


def why_not(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> str | None:
    """Return None where the kernel serves and is faster, else the reason why it is not used."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return "it multiplies bfloat16 on a CPU"
    if not (torch.cpu._is_vnni_supported() and torch.cpu._is_avx512_bf16_supported()):
        return "this CPU has no AVX-512 with VNNI and bfloat16"
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return "this torch lacks oneDNN's 8-bit product"
    outputs, columns = shape
    if outputs < _LEAST_OUTPUTS:
        return f"{outputs} outputs are too few to pay for rounding the inputs"
    if columns % ROTATED:
        return f"{columns} columns are no multiple of {ROTATED}"
    return None


def _largest(rows: torch.Tensor) -> torch.Tensor:
    """Return each row's largest magnitude, never 0: [rows, 1].

    Without its sign, a bfloat16's bits are as large as the number, and torch finds the largest of
    integers four times as fast. The bits of what is no number are the largest of all.
    """
    bits = rows.view(torch.int16).bitwise_and(0x7FFF).amax(1, keepdim=True)
    return bits.view(torch.bfloat16).clamp_(min=_TINY)
