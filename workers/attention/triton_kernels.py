"""Attention over the paged pool as Triton kernels: store K and V, one query a sequence, many.

A page is one head's [block_size, head_dim] of one block, contiguous: pointers step over pages by
`kv_block`, from K to V by `kv_value`, from head to head by `kv_head`. All query heads of a KV head
are rows of one product, so K and V are read once. Scores are in powers of two (`exp2`).
Kernels take many arguments because Triton knows no records.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from stafette.workers.gpu.shared_kernels import wait

# Far below any score, yet finite: a row that sees nothing of a tile stays free of inf - inf.
_HIDDEN = tl.constexpr(-1.0e30)
_FP8_MAX = tl.constexpr(448.0)


@triton.jit
def store_kv(
    k, v, kv, slots, k_token, k_head, v_token, v_head, kv_block, kv_value, kv_head,
    HEADS: tl.constexpr, HEADS_PADDED: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    PAGE: tl.constexpr, FP8: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Write one token's K and V, all heads, to its slot; a slot below 0 is skipped."""
    wait(EARLY)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot >= 0:
        heads = tl.arange(0, HEADS_PADDED)[:, None]
        dims = tl.arange(0, DIM_PADDED)[None, :]
        real = (heads < HEADS) & (dims < DIM)
        keys = tl.load(k + token * k_token + heads * k_head + dims, mask=real)
        values = tl.load(v + token * v_token + heads * v_head + dims, mask=real)
        if FP8:
            keys = tl.clamp(keys.to(tl.float32), -_FP8_MAX, _FP8_MAX)
            values = tl.clamp(values.to(tl.float32), -_FP8_MAX, _FP8_MAX)
        to = kv + (slot // PAGE) * kv_block + (slot % PAGE) * DIM + heads * kv_head + dims
        tl.store(to, keys.to(kv.dtype.element_ty), mask=real)
        tl.store(to + kv_value, values.to(kv.dtype.element_ty), mask=real)


@triton.jit
def _first_seen(position, WINDOW: tl.constexpr, TILE: tl.constexpr):
    """Return where reading starts for a query at `position`, rounded down to a tile."""
    if WINDOW > 0:
        return tl.maximum(position + 1 - WINDOW, 0) // TILE * TILE
    else:
        return 0


@triton.jit
def _split_tokens(length, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """Return how many tokens one split takes: a matter of the sequence's own length alone."""
    return tl.cdiv(length, SPLIT * MAX_SPLITS) * SPLIT


@triton.jit
def _load_tile(
    base, table, start, stop, kv_block, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    PAGE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return pointers to tokens start … start + TILE of one head's K, and which are real."""
    tokens = start + tl.arange(0, TILE)
    dims = tl.arange(0, DIM_PADDED)[None, :]
    if PAGE % TILE == 0:  # the tile lies within one page
        page = tl.load(table + start // PAGE).to(tl.int64)
        rows = page * kv_block + (tokens % PAGE)[:, None] * DIM
    else:
        pages = tl.load(table + tokens // PAGE, mask=tokens < stop, other=0).to(tl.int64)
        rows = pages[:, None] * kv_block + (tokens % PAGE)[:, None] * DIM
    real = (tokens < stop)[:, None] & (dims < DIM)
    return base + rows + dims, real


@triton.jit
def _absorb(q, keys, values, seen, scale, best, total, mixed, MASKED: tl.constexpr):
    """Fold one tile into a softmax's running maximum (of raw scores), sum and mix."""
    scores = tl.dot(q, tl.trans(keys), input_precision="tf32x3")
    if MASKED:
        scores = tl.where(seen, scores, _HIDDEN)
    new_best = tl.maximum(best, tl.max(scores, 1))
    weights = tl.exp2(scores * scale - (new_best * scale)[:, None])
    shrink = tl.exp2((best - new_best) * scale)
    total = total * shrink + tl.sum(weights, 1)
    mixed = tl.dot(
        weights.to(values.dtype), values, mixed * shrink[:, None], input_precision="tf32x3"
    )
    return new_best, total, mixed


@triton.jit
def decode(
    q, kv, tables, starts, lens, out, lse, num_splits, scale, q_token, q_head, table_row,
    kv_block, kv_value, kv_head, out_row, HEADS: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr, PAGE: tl.constexpr,
    TILE: tl.constexpr, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, WINDOW: tl.constexpr,
    WHOLE: tl.constexpr, COMPUTE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Attend for sequences of one query: splits program_id(2), + programs, … of one KV head.

    WHOLE: there is one split, whose result is the answer, written to out[token, head]. Otherwise
    out is float32 [sequences, HEADS, num_splits, DIM] and lse its weights, for `merge_splits`.
    """
    wait(EARLY)
    seq = tl.program_id(0)
    head = tl.program_id(1)
    token = tl.load(starts + seq)
    if tl.load(starts + seq + 1) - token == 1:
        context = tl.load(lens + seq)
        begin = _first_seen(context - 1, WINDOW, TILE)
        size = _split_tokens(context - begin, SPLIT, MAX_SPLITS)
        rows = tl.arange(0, ROWS)
        dims = tl.arange(0, DIM_PADDED)
        heads = head * GROUP + rows
        real = (rows < GROUP)[:, None] & (dims < DIM)[None, :]
        from_q = q + token.to(tl.int64) * q_token + heads[:, None] * q_head + dims[None, :]
        queries = tl.load(from_q, mask=real, other=0.0).to(COMPUTE)
        table = tables + seq.to(tl.int64) * table_row
        base = kv + head.to(tl.int64) * kv_head
        used = tl.cdiv(context - begin, tl.maximum(size, 1))
        if WHOLE:
            used = 1  # also of an empty context, whose answer is 0
        for split in range(tl.program_id(2), used, tl.num_programs(2)):
            best = tl.full([ROWS], _HIDDEN, tl.float32)
            total = tl.zeros([ROWS], tl.float32)
            mixed = tl.zeros([ROWS, DIM_PADDED], tl.float32)
            low = begin + split * size
            high = tl.minimum(low + size, context)
            for start in range(low, high, TILE):
                at, stored = _load_tile(
                    base, table, start, high, kv_block, DIM, DIM_PADDED, PAGE, TILE
                )
                keys = tl.load(at, mask=stored, other=0.0).to(COMPUTE)
                values = tl.load(at + kv_value, mask=stored, other=0.0).to(COMPUTE)
                tokens = start + tl.arange(0, TILE)
                seen = tokens < high
                if WINDOW > 0:
                    seen = seen & (tokens + WINDOW >= context)
                best, total, mixed = _absorb(
                    queries, keys, values, seen[None, :], scale, best, total, mixed, True
                )
            answer = mixed / tl.where(total > 0, total, 1.0)[:, None]
            if WHOLE:
                to = out + token.to(tl.int64) * out_row + heads[:, None] * DIM + dims[None, :]
                tl.store(to, answer.to(out.dtype.element_ty), mask=real)
            else:
                part = (seq.to(tl.int64) * HEADS + heads) * num_splits + split
                tl.store(out + part[:, None] * DIM + dims[None, :], answer, mask=real)
                tl.store(lse + part, best * scale + tl.log2(total), mask=rows < GROUP)


@triton.jit
def merge_splits(
    parts, lse, starts, lens, out, out_row, num_splits, HEADS: tl.constexpr, DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Weigh a head's splits into its answer, always in the same order."""
    wait(EARLY)
    seq = tl.program_id(0)
    head = tl.program_id(1)
    token = tl.load(starts + seq)
    if tl.load(starts + seq + 1) - token == 1:
        context = tl.load(lens + seq)
        begin = _first_seen(context - 1, WINDOW, TILE)
        size = _split_tokens(context - begin, SPLIT, MAX_SPLITS)
        used = tl.cdiv(context - begin, tl.maximum(size, 1))
        dims = tl.arange(0, DIM_PADDED)
        part = (seq.to(tl.int64) * HEADS + head) * num_splits
        best = tl.full([CHUNK], _HIDDEN, tl.float32)
        for first in range(0, used, CHUNK):
            splits = first + tl.arange(0, CHUNK)
            best = tl.maximum(best, tl.load(lse + part + splits, mask=splits < used, other=_HIDDEN))
        top = tl.max(best, 0)
        total = tl.zeros([CHUNK], tl.float32)
        mixed = tl.zeros([DIM_PADDED], tl.float32)
        for first in range(0, used, CHUNK):
            splits = first + tl.arange(0, CHUNK)
            weights = tl.exp2(tl.load(lse + part + splits, mask=splits < used, other=_HIDDEN) - top)
            weights = tl.where(splits < used, weights, 0.0)
            real = (splits < used)[:, None] & (dims < DIM)[None, :]
            at = parts + (part + splits)[:, None] * DIM + dims[None, :]
            mixed += tl.sum(weights[:, None] * tl.load(at, mask=real, other=0.0), 0)
            total += weights
        share = tl.sum(total, 0)
        answer = mixed / tl.where(share > 0, share, 1.0)
        to = out + token.to(tl.int64) * out_row + head * DIM + dims
        tl.store(to, answer.to(out.dtype.element_ty), mask=dims < DIM)


@triton.jit
def _sequence_of(block, starts, num_seqs, QUERIES: tl.constexpr):
    """Return whose block of queries `block` is: sequence s owns those from starts[s] / QUERIES + s.

    Each gets at least as many as it needs, and the last ones of some are empty.
    """
    low = 0
    high = num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts + middle) // QUERIES + middle <= block:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def prefill(
    q, kv, tables, starts, lens, out, num_seqs, scale, q_token, q_head, table_row, kv_block,
    kv_value, kv_head, out_row, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """Attend for sequences of several queries: one block of queries, all heads of one KV head."""
    QUERIES: tl.constexpr = ROWS // GROUP
    # Late queries see most: their blocks start first, so that the grid has no long tail.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    seq = _sequence_of(block, starts, num_seqs, QUERIES)
    token = tl.load(starts + seq)
    count = tl.load(starts + seq + 1) - token
    first = (block - (token // QUERIES + seq)) * QUERIES
    if (first < count) & (count > 1):
        context = tl.load(lens + seq)
        rows = tl.arange(0, ROWS)
        dims = tl.arange(0, DIM_PADDED)
        query = first + rows // GROUP
        heads = head * GROUP + rows % GROUP
        row_real = (rows < QUERIES * GROUP) & (query < count)
        real = row_real[:, None] & (dims < DIM)[None, :]
        row_token = (token + query).to(tl.int64)
        from_q = q + row_token[:, None] * q_token + heads[:, None] * q_head + dims[None, :]
        queries = tl.load(from_q, mask=real, other=0.0).to(COMPUTE)
        table = tables + seq.to(tl.int64) * table_row
        base = kv + head.to(tl.int64) * kv_head
        position = context - count + query
        oldest = context - count + first
        high = tl.minimum(context, oldest + QUERIES)
        low = _first_seen(oldest, WINDOW, TILE)
        best = tl.full([ROWS], _HIDDEN, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, DIM_PADDED], tl.float32)
        # Tiles before the oldest query are seen by all of them, unless a window cuts them off.
        plain = low if WINDOW > 0 else (oldest + 1) // TILE * TILE
        for start in range(low, plain, TILE):
            at, stored = _load_tile(
                base, table, start, plain, kv_block, DIM, DIM_PADDED, PAGE, TILE
            )
            keys = tl.load(at, mask=stored, other=0.0).to(COMPUTE)
            values = tl.load(at + kv_value, mask=stored, other=0.0).to(COMPUTE)
            best, total, mixed = _absorb(
                queries, keys, values, None, scale, best, total, mixed, False
            )
        for start in range(plain, high, TILE):
            at, stored = _load_tile(base, table, start, high, kv_block, DIM, DIM_PADDED, PAGE, TILE)
            keys = tl.load(at, mask=stored, other=0.0).to(COMPUTE)
            values = tl.load(at + kv_value, mask=stored, other=0.0).to(COMPUTE)
            tokens = (start + tl.arange(0, TILE))[None, :]
            seen = tokens <= position[:, None]
            if WINDOW > 0:
                seen = seen & (tokens + WINDOW > position[:, None])
            best, total, mixed = _absorb(
                queries, keys, values, seen, scale, best, total, mixed, True
            )
        answer = mixed / tl.where(total > 0, total, 1.0)[:, None]
        to = out + row_token[:, None] * out_row + heads[:, None] * DIM + dims[None, :]
        tl.store(to, answer.to(out.dtype.element_ty), mask=real)
