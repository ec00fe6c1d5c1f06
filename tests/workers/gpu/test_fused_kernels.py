"""The fused kernels against plain torch in float64; compiled on a GPU, else interpreted."""

import os

import pytest
import torch
from torch.nn import functional

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    pytest.skip("needs a GPU or Triton's interpreter", allow_module_level=True)

from stafette.workers.models import fused
from stafette.workers.models.fused import Around, HeadNorms
from stafette.workers.models.rope import Rope, rotate
from stafette.workers.models.spec import RopeSpec

pytestmark = pytest.mark.gpu if torch.cuda.is_available() else []
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-6


def randn(*shape):
    return torch.randn(*shape, device=DEVICE)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def normed(x, weight):
    return functional.rms_norm(x.double(), weight.shape, weight.double(), EPS)


def close(got, expected, tolerance=1e-5):
    torch.testing.assert_close(got.double(), expected.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("size", [64, 576])
def test_sum_is_returned_beside_its_norm(size):
    x, added, weight = randn(5, size), randn(5, size), randn(size)

    total, out = fused.add_rms_norm(x, added, weight, EPS)

    close(total, x + added)
    close(out, normed(x + added, weight))


@pytest.mark.parametrize("with_norms", [True, False])
@pytest.mark.parametrize("head_dim", [64, 80])
def test_heads_are_normed_and_turned_where_they_lie(with_norms, head_dim):
    qkv = randn(3, 9, head_dim)  # five q heads, two k, two v
    before = qkv.clone()
    norms = HeadNorms(randn(head_dim), randn(head_dim), EPS) if with_norms else None
    cos, sin = Rope(RopeSpec(), head_dim, DEVICE).angles(
        torch.tensor([0, 7, 1000], device=DEVICE), torch.float32
    )

    fused.norm_rope(qkv[:, :7], 5, norms, cos, sin)

    q, k = before[:, :5], before[:, 5:7]
    if norms:
        q, k = normed(q, norms.q), normed(k, norms.k)
    close(qkv[:, :7], rotate(torch.cat((q, k), 1).double(), cos.double(), sin.double()))
    assert torch.equal(qkv[:, 7:], before[:, 7:])


def test_gates_open_on_ups():
    gate_up = randn(3, 2 * 1200)

    gate, up = gate_up.double().chunk(2, -1)
    close(fused.silu_and_mul(gate_up), functional.silu(gate) * up)


@pytest.mark.parametrize(("rows", "columns"), [(96, 64), (50, 576), (7, 5000)])
@pytest.mark.parametrize("biased", [True, False])
def test_product_of_one_token_with_norm_and_residual(rows, columns, biased):
    x, weight, norm = randn(1, columns), randn(rows, columns), randn(columns)
    bias = randn(rows) if biased else None
    residual = randn(1, rows)

    plain = fused.gemv(x, weight, bias)
    full = fused.gemv(x, weight, bias, Around(norm, EPS, residual))

    added = bias.double() if biased else 0.0
    close(plain, x.double() @ weight.double().T + added, 1e-4)
    close(full, normed(x, norm) @ weight.double().T + added + residual, 1e-4)


@pytest.mark.parametrize("biased", [True, False])
def test_gated_product_of_one_token(biased):
    x, weight, norm = randn(1, 96), randn(2 * 70, 96), randn(96)
    bias = randn(140) if biased else None

    out = fused.gemv(x, weight, bias, Around(norm, EPS, gated=True))

    gate, up = functional.linear(
        normed(x, norm), weight.double(), bias.double() if biased else None
    ).chunk(2, -1)
    close(out, functional.silu(gate) * up, 1e-4)


def test_half_precision_in_and_out():
    x, weight, norm = randn(1, 256).half(), randn(64, 256).half(), randn(256).half()

    out = fused.gemv(x, weight, None, Around(norm, EPS))

    assert out.dtype == torch.float16
    close(out, normed(x, norm) @ weight.double().T, 2e-2)
