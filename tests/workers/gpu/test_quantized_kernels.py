"""Products with packed weights against dequantized ones; compiled on a GPU, else interpreted."""

import os

import numpy as np
import pytest
import torch
from torch.nn import functional

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    pytest.skip("needs a GPU or Triton's interpreter", allow_module_level=True)

from stafette.workers.models.fused import Around
from stafette.workers.models.quantized import PackedLinear, join_rows
from stafette.workers.weights.checkpoint import GROUP, GroupedWeight

pytestmark = pytest.mark.gpu if torch.cuda.is_available() else []
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def grouped(bits, rows, columns, offset=True, seed=0):
    random = np.random.default_rng(seed)
    if bits == 4:
        codes = random.integers(0, 256, (rows, columns // 2), dtype=np.uint8)
    else:
        codes = random.integers(-128, 128, (rows, columns), dtype=np.int8)
    groups = rows, columns // GROUP
    scale = random.uniform(0.01, 0.1, groups).astype(np.float16).astype(np.float32)
    offsets = random.normal(size=groups).astype(np.float32) if offset else None
    return GroupedWeight(bits, codes, scale, offsets)


def close(got, expected):
    scale = float(expected.abs().max())
    torch.testing.assert_close(got.double() / scale, expected.double() / scale, atol=1e-5, rtol=0)


def products(weight, x, bias=None):
    dense = weight.dequantize(torch.float64).to(DEVICE)
    return functional.linear(x.double(), dense, None if bias is None else bias.double())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("tokens", [1, 3, 20, 70])
def test_product_is_that_of_the_dequantized_weight(bits, offset, tokens):
    weight = grouped(bits, 70, 192, offset)
    x, bias = torch.randn(tokens, 192, device=DEVICE), torch.randn(70, device=DEVICE)

    close(PackedLinear(weight, bias, DEVICE)(x), products(weight, x, bias))


def test_one_token_and_more_columns_than_a_tile():
    weight = grouped(4, 3, 4096 + 96)
    x = torch.randn(1, 4096 + 96, device=DEVICE)

    close(PackedLinear(weight, None, DEVICE)(x), products(weight, x))


@pytest.mark.parametrize("bits", [4, 8])
def test_norm_gate_and_residual_ride_along(bits):
    weight, norm = (
        grouped(bits, 80, 96),
        (torch.rand(96, device=DEVICE) + 0.5) / 100,
    )  # exp() of the gate must not overflow
    x, residual = torch.randn(1, 96, device=DEVICE), torch.randn(1, 40, device=DEVICE)

    out = PackedLinear(weight, None, DEVICE).one_token(x, Around(norm, 1e-6, residual, gated=True))

    normed = functional.rms_norm(x.double(), (96,), norm.double(), 1e-6)
    gate, up = products(weight, normed).chunk(2, -1)
    close(out, functional.silu(gate) * up + residual)


def test_scales_are_kept_exactly():
    weight = grouped(4, 4, 64)

    packed = PackedLinear(weight, None, DEVICE)

    assert packed.scale.dtype == torch.float16
    assert packed.offset.dtype == torch.float32
    assert torch.equal(packed.scale.float().cpu(), torch.from_numpy(weight.scale))


def test_joined_matrices_give_their_products_side_by_side():
    pieces = [grouped(4, 8, 64, offset=False), grouped(4, 5, 64, seed=1)]
    x = torch.randn(2, 64, device=DEVICE)

    joined = PackedLinear(join_rows(pieces), None, DEVICE)(x)

    close(joined, torch.cat([products(piece, x) for piece in pieces], 1))


def test_matrices_of_different_widths_of_code_are_not_joined():
    assert join_rows([grouped(4, 8, 64), grouped(8, 8, 64)]) is None
