"""Products on 8-bit integers: near the exact ones, and a row never depends on another."""

import numpy as np
import pytest
import torch

from stafette.workers.models import eight_bit
from stafette.workers.models.eight_bit import EightBitKernel, hadamard
from stafette.workers.models.linear import PackedKernel
from stafette.workers.models.loading import Matrix, WeightLoader
from stafette.workers.models.sharding import SOLO
from stafette.workers.weights.checkpoint import GROUP, GroupedWeight

CPU = torch.device("cpu")
OUTPUTS, COLUMNS = 1088, 192
HERE = eight_bit.why_not((OUTPUTS, COLUMNS), torch.bfloat16, CPU)

needs_vnni = pytest.mark.skipif(HERE is not None, reason=str(HERE))


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def error_of(kernel, x, weight):
    exact = x.float() @ weight.T
    return ((kernel(x).float() - exact).norm() / exact.norm()).item()


def test_rotating_twice_changes_nothing():
    matrix = hadamard(8)

    torch.testing.assert_close(matrix @ matrix, torch.eye(8))
    assert matrix.abs().unique().numel() == 1


@needs_vnni
def test_product_is_near_the_exact_one():
    weight, x = draw(OUTPUTS, COLUMNS), draw(40, COLUMNS).bfloat16()

    assert error_of(EightBitKernel(weight, None), x, weight) < 0.015


@needs_vnni
def test_column_that_sticks_out_does_not_drown_the_others():
    weight, x = draw(OUTPUTS, COLUMNS), draw(40, COLUMNS).bfloat16()
    x[:, 5] *= 60
    weight[:, 5] = 0  # what is left is what the others give

    exact = x.float() @ weight.T
    found = EightBitKernel(weight, None)(x).float()

    # Rounding to 1/126 of the largest value alone would be wrong by a fifth and more.
    assert (found - exact).norm() / exact.norm() < 0.1


@needs_vnni
@pytest.mark.parametrize("rows", [1, 2, 17, 100])
def test_row_is_bit_for_bit_the_same_whatever_shares_its_batch(rows):
    kernel = EightBitKernel(draw(OUTPUTS, COLUMNS), None)
    x = draw(100, COLUMNS).bfloat16()
    x[50:] *= 1000

    assert torch.equal(kernel(x)[:rows], kernel(x[:rows]))


@needs_vnni
def test_row_of_zeros_gives_the_bias():
    bias = draw(OUTPUTS).bfloat16()

    out = EightBitKernel(draw(OUTPUTS, COLUMNS), bias)(torch.zeros(2, COLUMNS).bfloat16())

    assert torch.equal(out, bias.expand(2, -1))


@needs_vnni
def test_row_that_is_no_number_stays_so_and_alone():
    x = draw(3, COLUMNS).bfloat16()
    x[1, 4] = float("nan")

    out = EightBitKernel(draw(OUTPUTS, COLUMNS), None)(x)

    assert out[1].isnan().all()
    assert not out[[0, 2]].isnan().any()


@needs_vnni
def test_kernel_leaves_its_input_alone():
    x = draw(3, COLUMNS).bfloat16()
    before = x.clone()

    EightBitKernel(draw(OUTPUTS, COLUMNS), None)(x)

    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1024, 1024), torch.float32, "bfloat16"),
        ((64, 1024), torch.bfloat16, "64 outputs"),
        ((1024, 96), torch.bfloat16, "96 columns"),
    ],
)
def test_reason_against_it_names_what_is_in_the_way(monkeypatch, shape, dtype, reason):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)

    assert reason in eight_bit.why_not(shape, dtype, CPU)


def test_processor_without_vnni_is_a_reason(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)

    assert "VNNI" in eight_bit.why_not((1024, 1024), torch.bfloat16, CPU)


class OneMatrix:
    """A checkpoint of one matrix."""

    spec = None

    def __init__(self, weight):
        self.weight = weight

    def names(self):
        return ["up.weight"]

    def load(self, name):
        return self.weight


def grouped():
    codes = np.random.default_rng(0).integers(0, 256, (OUTPUTS, COLUMNS // 2), np.uint8)
    scale = np.full((OUTPUTS, COLUMNS // GROUP), 0.01, np.float32)
    return GroupedWeight(4, codes, scale, -8 * scale)


def kernel_of(weight, dtype):
    loader = WeightLoader(OneMatrix(weight), dtype, CPU, SOLO)
    return loader.column([Matrix("up", OUTPUTS, COLUMNS)])._kernel


@needs_vnni
def test_quantized_matrix_multiplies_in_eight_bits():
    kernel, x = kernel_of(grouped(), torch.bfloat16), draw(8, COLUMNS).bfloat16()

    assert isinstance(kernel, EightBitKernel)
    assert error_of(kernel, x, grouped().dequantize()) < 0.015


@needs_vnni
def test_matrix_that_is_not_quantized_keeps_its_dtype():
    assert isinstance(kernel_of(grouped().dequantize(), torch.bfloat16), PackedKernel)


def test_float32_stays_exact():
    kernel, x = kernel_of(grouped(), torch.float32), draw(8, COLUMNS)

    torch.testing.assert_close(kernel(x), x @ grouped().dequantize().T)
