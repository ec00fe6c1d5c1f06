"""Products with 4-bit and 8-bit weights that stay packed in memory: unpacked in registers.

Codes lie in groups of 32 columns that share a scale and an offset. A byte of a 4-bit group holds
column j (low half) and column j + 16 (high half): see quantized.py, which packs them so.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from stafette.workers.gpu.shared_kernels import wait
from stafette.workers.models.fused_kernels import finish_gemv


@triton.jit
def _as_float(codes):
    """Turn integers 0 … 255 into floats: the bits of 2^23 + code, less 2^23.

    A conversion instruction would run at an eighth of the speed.
    """
    return (codes.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def _group_sums(codes, low, high, BITS: tl.constexpr):
    """Return each row's products of codes and x, summed by group: [rows, groups]."""
    if BITS == 4:
        codes = codes.to(tl.int32)
        return tl.sum(_as_float(codes & 15) * low[None] + _as_float(codes >> 4) * high[None], 2)
    else:
        # Signed codes, moved up by 128 to be told from their bits, and down again.
        return tl.sum((_as_float(codes.to(tl.int32) + 128) - 128.0) * low[None], 2)


@triton.jit
def gemv_grouped(
    x, codes, scale, offset, norm, bias, residual, out, eps, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_GROUPS: tl.constexpr,
    BITS: tl.constexpr, OFFSET: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr, GATED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """As fused_kernels.gemv, with a packed weight; GATED has its up rows ROWS below its gates."""
    GROUPS: tl.constexpr = COLUMNS // 32
    BYTES: tl.constexpr = 4 * BITS  # of a group
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    wide = rows.to(tl.int64)[:, None]
    sums = tl.zeros([BLOCK_ROWS], tl.float32)
    ups = tl.zeros([BLOCK_ROWS], tl.float32)
    squares = 0.0
    for start in tl.static_range(0, GROUPS, BLOCK_GROUPS):
        groups = start + tl.arange(0, BLOCK_GROUPS)
        inner = tl.arange(0, BYTES)
        real = (rows < ROWS)[:, None] & (groups < GROUPS)[None, :]
        at_group = wide * GROUPS + groups[None, :]
        at_codes = at_group[:, :, None] * BYTES + inner[None, None, :]
        packed = tl.load(codes + at_codes, mask=real[:, :, None], other=0)
        scales = tl.load(scale + at_group, mask=real, other=0.0).to(tl.float32)
        if GATED:
            more = tl.load(codes + at_codes + ROWS * GROUPS * BYTES, mask=real[:, :, None], other=0)
            up_scales = tl.load(scale + at_group + ROWS * GROUPS, mask=real, other=0.0)
        if start == 0:
            wait(EARLY)
        columns = groups[:, None] * 32 + inner[None, :]
        inside = (groups < GROUPS)[:, None]
        low = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        high = low
        if BITS == 4:
            high = tl.load(x + columns + 16, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            squares += tl.sum(tl.sum(low * low, 1), 0)
            low *= tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)
            if BITS == 4:
                squares += tl.sum(tl.sum(high * high, 1), 0)
                high *= tl.load(norm + columns + 16, mask=inside, other=0.0).to(tl.float32)
        sums += tl.sum(_group_sums(packed, low, high, BITS) * scales, 1)
        if GATED:
            ups += tl.sum(_group_sums(more, low, high, BITS) * up_scales.to(tl.float32), 1)
        if OFFSET:
            of_group = tl.sum(low, 1) + (tl.sum(high, 1) if BITS == 4 else 0.0)
            offsets = tl.load(offset + at_group, mask=real, other=0.0).to(tl.float32)
            sums += tl.sum(offsets * of_group[None, :], 1)
            if GATED:
                offsets = tl.load(offset + at_group + ROWS * GROUPS, mask=real, other=0.0)
                ups += tl.sum(offsets.to(tl.float32) * of_group[None, :], 1)
    factor = tl.rsqrt(squares / COLUMNS + eps) if NORM else 1.0
    finish_gemv(sums * factor, ups * factor, rows, bias, residual, out, ROWS, BIAS, RESIDUAL, GATED)


@triton.jit
def gemm_grouped(
    x, codes, scale, offset, bias, out, num_tokens, x_row, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_BYTES: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr, BIAS: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """Several tokens: weights are unpacked a tile at a time, for the tensor cores.

    Low and high halves of the bytes are two products, so nothing is shuffled between threads.
    """
    GROUPS: tl.constexpr = COLUMNS // 32
    GROUP_BYTES: tl.constexpr = 4 * BITS
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    rows = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token_real = (tokens < num_tokens)[:, None]
    row_real = (rows < ROWS)[None, :]
    from_x = x + tokens.to(tl.int64)[:, None] * x_row
    wide = rows.to(tl.int64)[None, :]
    sums = tl.zeros([BLOCK_TOKENS, BLOCK_ROWS], tl.float32)
    for start in range(0, GROUPS * GROUP_BYTES, BLOCK_BYTES):
        at = start + tl.arange(0, BLOCK_BYTES)
        inside = at < GROUPS * GROUP_BYTES
        columns = at // GROUP_BYTES * 32 + at % GROUP_BYTES
        real = inside[:, None] & row_real
        packed = tl.load(codes + wide * (GROUPS * GROUP_BYTES) + at[:, None], mask=real, other=0)
        at_group = wide * GROUPS + (at // GROUP_BYTES)[:, None]
        scales = tl.load(scale + at_group, mask=real, other=0.0).to(tl.float32)
        offsets = 0.0
        if OFFSET:
            offsets = tl.load(offset + at_group, mask=real, other=0.0).to(tl.float32)
        values = tl.load(from_x + columns[None, :], mask=token_real & inside[None, :], other=0.0)
        if BITS == 4:
            packed = packed.to(tl.int32)
            weights = _as_float(packed & 15) * scales + offsets
            sums = tl.dot(values.to(COMPUTE), weights.to(COMPUTE), sums, input_precision="tf32x3")
            values = tl.load(
                from_x + columns[None, :] + 16, mask=token_real & inside[None, :], other=0.0
            )
            weights = _as_float(packed >> 4) * scales + offsets
        else:
            weights = packed.to(tl.float32) * scales + offsets
        sums = tl.dot(values.to(COMPUTE), weights.to(COMPUTE), sums, input_precision="tf32x3")
    if BIAS:
        sums += tl.load(bias + rows, mask=rows < ROWS, other=0.0).to(tl.float32)[None, :]
    to = out + tokens.to(tl.int64)[:, None] * ROWS + rows[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), mask=token_real & row_real)
