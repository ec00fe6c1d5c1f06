"""Reads and writes a layer of the paged pool with plain torch, whatever the pool's dtype.

A layer is seen as a matrix whose rows are blocks of one head (`block_ids`, `gather`) or single
tokens of one (`token_ids`, `store`). The rows of other layers lie between and are never named.
Row numbers are the same for every layer of a pool, so a step computes them once.
"""

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def block_ids(layer_kv: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Return the rows of [sequences, width] blocks: [2 (K, V), sequences, num_kv_heads, width]."""
    row = layer_kv.shape[-1] * layer_kv.shape[-2]
    starts = blocks.long()[:, None, :] * (layer_kv.stride(0) // row)
    return _heads(layer_kv, row)[:, None, :, None] + starts


def token_ids(layer_kv: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Return the rows of slots, none of them negative: [tokens * 2 (K, V) * num_kv_heads]."""
    block_size, row = layer_kv.shape[-2:]
    starts = slots // block_size * (layer_kv.stride(0) // row) + slots % block_size
    return (starts[:, None] + _heads(layer_kv, row).flatten()).flatten()


def gather(layer_kv: torch.Tensor, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return rows of blocks as [2, sequences, num_kv_heads, width * block_size, head_dim]."""
    block_size, head_dim = layer_kv.shape[-2:]
    rows = _bits(_rows(layer_kv, block_size * head_dim)).index_select(0, ids.flatten())
    rows = rows.view(layer_kv.dtype).to(dtype)
    return rows.view(*ids.shape[:-1], ids.shape[-1] * block_size, head_dim)


def read_tokens(layer_kv: torch.Tensor, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return rows of tokens, [len(ids), head_dim]."""
    rows = _bits(_rows(layer_kv, layer_kv.shape[-1])).index_select(0, ids)
    return rows.view(layer_kv.dtype).to(dtype)


def store(k: torch.Tensor, v: torch.Tensor, layer_kv: torch.Tensor, ids: torch.Tensor) -> None:
    """Write k and v [tokens, num_kv_heads, head_dim] to rows of tokens."""
    head_dim = layer_kv.shape[-1]
    values = torch.stack((k, v), 1).view(-1, head_dim)
    rows = _bits(_rows(layer_kv, head_dim))
    rows.index_copy_(0, ids, _bits(to_pool(values, layer_kv.dtype)))


def to_pool(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert to the pool's dtype; what fp8 cannot hold becomes its largest value, not NaN."""
    if dtype == FP8:
        values = values.clamp(-FP8_MAX, FP8_MAX)
    return values.to(dtype)


def _heads(layer_kv: torch.Tensor, row: int) -> torch.Tensor:
    """Return where K's and V's heads start within a block, in rows: [2, num_kv_heads]."""
    two, heads = layer_kv.shape[1:3]
    values = torch.arange(two, device=layer_kv.device)[:, None] * (layer_kv.stride(1) // row)
    return values + torch.arange(heads, device=layer_kv.device) * (layer_kv.stride(2) // row)


def _rows(layer_kv: torch.Tensor, row: int) -> torch.Tensor:
    sizes_strides = zip(layer_kv.shape, layer_kv.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in sizes_strides)
    return layer_kv.as_strided((last // row + 1, row), (row, 1))


def _bits(rows: torch.Tensor) -> torch.Tensor:
    """Return fp8 as bytes, which every torch operation can move; others as they are."""
    return rows.view(torch.uint8) if rows.dtype == FP8 else rows
