"""Which sequences TorchAttention runs together. Worked out once a step; all layers use it."""

import math
from collections import defaultdict
from dataclasses import dataclass

import torch

from stafette.workers.attention.backend import AttentionMetadata, AttentionShape
from stafette.workers.attention.paged_pool import block_ids, token_ids
from stafette.workers.attention.torch_copies import Copies, Kept, num_places

MANY_QUERIES = 32  # from here flash attention is faster than two products and a softmax
MOST_COPIED = 0.25  # of the pool: what copies of those that decode may take beside it


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences with equally many queries, padded to the longest of their contexts."""

    tokens: torch.Tensor | None  # [sequences * query_len], rows of q; None: all of them, in order
    blocks: torch.Tensor | None  # rows of the pool, see paged_pool.block_ids; None: as `kept` says
    query_len: int
    causal: bool  # prompts that begin here, all of one length: needs no mask
    seen: torch.Tensor | None  # bool [sequences, 1, query_len, context]; None: everything
    bias: torch.Tensor | None  # the same as 0 and -inf
    kept: Kept | None = None  # of sequences that decode; masks go by its places then


@dataclass(frozen=True, slots=True)
class Plan:
    stored: torch.Tensor | None  # which tokens are real; None: all
    slots: torch.Tensor  # rows of the pool, see paged_pool.token_ids
    groups: list[Group]


def make_plan(
    shape: AttentionShape,
    layer_kv: torch.Tensor,
    meta: AttentionMetadata,
    dtype: torch.dtype,
    copies: dict[int, Copies],
) -> Plan:
    """Group sequences by their queries and by the power of two that holds their context.

    `copies` are those of the last step, by that power, and are brought up to this one.
    """
    real = meta.slots >= 0
    stored = None if bool(real.all()) else real.nonzero()[:, 0]
    slots = meta.slots if stored is None else meta.slots[stored]
    alike = _alike(meta)
    for order in copies.keys() - {order for query_len, order in alike if query_len == 1}:
        del copies[order]
    groups = []
    for (query_len, order), rows in alike.items():
        kept = None
        if query_len == 1 and _may_copy(shape, rows, layer_kv, meta, dtype):
            kept = _keep(shape, rows, layer_kv, meta, copies.setdefault(order, Copies()))
        elif query_len == 1:
            copies.pop(order, None)
        groups.append(_group(shape, rows, layer_kv, meta, dtype, kept))
    return Plan(stored, token_ids(layer_kv, slots), groups)


def _alike(meta: AttentionMetadata) -> dict[tuple[int, int], list[int]]:
    starts, contexts = meta.query_starts.tolist(), meta.context_lens.tolist()
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, context_len in enumerate(contexts):
        query_len = starts[row + 1] - starts[row]
        if query_len > 0 and context_len > 0:
            groups[query_len, (context_len - 1).bit_length()].append(row)
    return groups


def _may_copy(
    shape: AttentionShape,
    rows: list[int],
    layer_kv: torch.Tensor,
    meta: AttentionMetadata,
    dtype: torch.dtype,
) -> bool:
    if meta.sequences is None:
        return False
    blocks = num_places(len(rows)) * _width(shape, meta.context_lens[rows])
    return blocks * dtype.itemsize <= MOST_COPIED * len(layer_kv) * layer_kv.dtype.itemsize


def _keep(
    shape: AttentionShape,
    rows: list[int],
    layer_kv: torch.Tensor,
    meta: AttentionMetadata,
    copies: Copies,
) -> Kept:
    assert meta.sequences is not None
    lengths = meta.context_lens[rows]
    blocks = meta.block_tables[rows, : _width(shape, lengths)]
    slots = meta.slots[meta.query_starts[rows].long()]
    sequences = [meta.sequences[row] for row in rows]
    return copies.keep(sequences, lengths.tolist(), blocks, slots, layer_kv)


def _width(shape: AttentionShape, lengths: torch.Tensor) -> int:
    """Return the blocks of the longest context."""
    return math.ceil(int(lengths.max()) / shape.block_size)


def _group(
    shape: AttentionShape,
    rows: list[int],
    layer_kv: torch.Tensor,
    meta: AttentionMetadata,
    dtype: torch.dtype,
    kept: Kept | None,
) -> Group:
    device = meta.slots.device
    chosen = torch.tensor(rows, device=device)
    lengths, firsts = meta.context_lens[chosen], meta.query_starts[chosen].long()
    query_len = int(meta.query_starts[rows[0] + 1] - firsts[0])
    width = _width(shape, lengths)
    ids = None if kept else block_ids(layer_kv, meta.block_tables[chosen, :width])
    tokens = None
    if len(rows) * query_len != len(meta.slots):
        tokens = (firsts[:, None] + torch.arange(query_len, device=device)).flatten()
    if _causal(shape, query_len, lengths):
        return Group(tokens, ids, query_len, causal=True, seen=None, bias=None)
    if kept is not None:
        lengths = kept.by_place(lengths)
    seen = _seen(shape, lengths, query_len, width)
    if seen.all():
        return Group(tokens, ids, query_len, causal=False, seen=None, bias=None, kept=kept)
    bias = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -math.inf)
    return Group(tokens, ids, query_len, causal=False, seen=seen, bias=bias, kept=kept)


def _causal(shape: AttentionShape, query_len: int, lengths: torch.Tensor) -> bool:
    """Whether torch's own causal mask says it all, and is used."""
    wide = shape.sliding_window is None or shape.sliding_window >= query_len
    return wide and query_len >= MANY_QUERIES and bool((lengths == query_len).all())


def _seen(shape: AttentionShape, lengths: torch.Tensor, query_len: int, width: int) -> torch.Tensor:
    """Return [sequences, 1, query_len, width * block_size]."""
    keys = torch.arange(width * shape.block_size, device=lengths.device)
    newest = torch.arange(query_len, device=lengths.device) - query_len
    queries = (lengths[:, None] + newest)[:, None, :, None]
    seen = keys <= queries
    window = shape.sliding_window
    return seen if window is None else seen & (keys > queries - window)
