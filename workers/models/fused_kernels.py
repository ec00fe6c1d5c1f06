"""What a decoder does around its products, as Triton kernels; and the product of one token itself.

Kernels with EARLY are launched ahead of time: see shared_kernels.wait.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from stafette.workers.gpu.shared_kernels import wait


@triton.jit
def add_rms_norm(
    x, added, weight, total, normed, eps, ADDS: tl.constexpr, SIZE: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """total = x + added; normed = total / rms(total) * weight. One row a program."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, PADDED)
    columns = tl.arange(0, PADDED)
    real = columns < SIZE
    values = tl.load(x + at, mask=real, other=0.0)
    if ADDS:
        values += tl.load(added + at, mask=real, other=0.0)
        tl.store(total + at, values, mask=real)
    wide = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    gain = tl.load(weight + columns, mask=real).to(tl.float32)
    tl.store(normed + at, (wide * scale * gain).to(normed.dtype.element_ty), mask=real)


@triton.jit
def norm_rope(
    heads, q_norm, k_norm, cos, sin, eps, row, angle_row, Q_HEADS: tl.constexpr,
    HEADS: tl.constexpr, HEADS_PADDED: tl.constexpr, HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr, NORM: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Norm and rotate, in place, the q and k heads of one token; q comes first in its row."""
    wait(EARLY)
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS_PADDED)[:, None]
    columns = tl.arange(0, HALF_PADDED)[None, :]
    real = (head < HEADS) & (columns < HALF)
    at = heads + token * row + head * (2 * HALF) + columns
    low = tl.load(at, mask=real, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, mask=real, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(low * low, 1) + tl.sum(high * high, 1)
        scale = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
        gains = tl.where(head < Q_HEADS, 0, 1)
        low *= scale * _gain(q_norm, k_norm, gains, columns, real)
        high *= scale * _gain(q_norm, k_norm, gains, columns + HALF, real)
    angles = token * angle_row + columns
    inside = columns < HALF
    cosine = tl.load(cos + angles, mask=inside, other=0.0).to(tl.float32)
    sine = tl.load(sin + angles + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, (low * cosine - high * sine).to(heads.dtype.element_ty), mask=real)
    tl.store(at + HALF, (high * cosine + low * sine).to(heads.dtype.element_ty), mask=real)


@triton.jit
def _gain(q_norm, k_norm, is_key, columns, real):
    """Return each head's norm weights: q heads have one vector, k heads another."""
    of_q = tl.load(q_norm + columns, mask=real & (is_key == 0), other=0.0).to(tl.float32)
    of_k = tl.load(k_norm + columns, mask=real & (is_key == 1), other=0.0).to(tl.float32)
    return of_q + of_k


@triton.jit
def silu_and_mul(gate_up, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """out = silu(gate) * up; a row is all gates, then all ups."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = columns < SIZE
    at = gate_up + token * 2 * SIZE + columns
    gate = tl.load(at, mask=real, other=0.0).to(tl.float32)
    up = tl.load(at + SIZE, mask=real, other=0.0).to(tl.float32)
    mixed = gate * tl.sigmoid(gate) * up
    tl.store(out + token * SIZE + columns, mixed.to(out.dtype.element_ty), mask=real)


@triton.jit
def gemv(
    x, weight, norm, bias, residual, out, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr, GATED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One token: out = weight @ norm(x) + bias + residual, or silu and product of its halves.

    The norm's scale is one number, so it multiplies the sums, and x is read once.
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    sums = tl.zeros([BLOCK_ROWS], tl.float32)
    ups = tl.zeros([BLOCK_ROWS], tl.float32)
    squares = 0.0
    for start in tl.static_range(0, COLUMNS, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        inside = columns < COLUMNS
        real = (rows < ROWS)[:, None] & inside[None, :]
        at = weight + rows.to(tl.int64)[:, None] * COLUMNS + columns[None, :]
        weights = tl.load(at, mask=real, other=0.0)
        if GATED:
            more = tl.load(at + ROWS * COLUMNS, mask=real, other=0.0)
        if start == 0:
            wait(EARLY)
        values = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            squares += tl.sum(values * values, 0)
            values *= tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)
        sums += tl.sum(weights.to(tl.float32) * values[None, :], 1)
        if GATED:
            ups += tl.sum(more.to(tl.float32) * values[None, :], 1)
    scale = tl.rsqrt(squares / COLUMNS + eps) if NORM else 1.0
    finish_gemv(sums * scale, ups * scale, rows, bias, residual, out, ROWS, BIAS, RESIDUAL, GATED)


@triton.jit
def finish_gemv(
    sums, ups, rows, bias, residual, out, ROWS: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """What comes after the sums: bias, then the gate or the residual."""
    real = rows < ROWS
    if BIAS:
        sums += tl.load(bias + rows, mask=real, other=0.0).to(tl.float32)
    if GATED:
        if BIAS:
            ups += tl.load(bias + ROWS + rows, mask=real, other=0.0).to(tl.float32)
        sums = sums * tl.sigmoid(sums) * ups
    if RESIDUAL:
        sums += tl.load(residual + rows, mask=real, other=0.0).to(tl.float32)
    tl.store(out + rows, sums.to(out.dtype.element_ty), mask=real)
