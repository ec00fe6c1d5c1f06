"""Attention on CPUs through the native library: blocks are read where they are, with no gather."""

from functools import cache

import torch

from stafette.workers.attention.backend import AttentionBackend, AttentionMetadata, AttentionShape
from stafette.workers.native import library
from stafette.workers.native.library import PagedAttention, Team
from stafette.workers.native.structs import AttentionDesc, Element

_ELEMENTS = {
    torch.float32: Element.FLOAT32,
    torch.bfloat16: Element.BFLOAT16,
    torch.float16: Element.FLOAT16,
}
_KV_DTYPES = ("float32", "bfloat16", "float16")
_TILE = 16  # head sizes that the kernels take are multiples of it
_MAX_HEAD_DIM = 512


class CpuAttention(AttentionBackend):
    """Needs the native library, and a head size that is a multiple of 16."""

    name = "cpu"

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self._desc = AttentionDesc(
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            block_size=shape.block_size,
            sliding_window=shape.sliding_window or 0,
            scale=shape.scale,
        )
        self._attention = PagedAttention(_team(torch.get_num_threads()), self._desc)

    @classmethod
    def why_not(cls, shape: AttentionShape, device: torch.device, kv_dtype: str) -> str | None:
        if device.type != "cpu":
            return "it runs on CPUs only"
        if reason := library.why_not():
            return reason
        if kv_dtype not in _KV_DTYPES:
            return f"it reads no {kv_dtype} pool"
        if shape.head_dim % _TILE or shape.head_dim > _MAX_HEAD_DIM:
            return f"head_dim {shape.head_dim} is no multiple of {_TILE} up to {_MAX_HEAD_DIM}"
        return None

    def write(
        self, k: torch.Tensor, v: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
    ) -> None:
        k, v = _rows(k), _rows(v)
        desc = self._describe(k, layer_kv)
        slots = meta.slots.contiguous()
        desc.k, desc.v, desc.slots = k.data_ptr(), v.data_ptr(), slots.data_ptr()
        desc.k_stride, desc.v_stride = k.stride(0), v.stride(0)
        self._attention.write(desc)

    def attend(
        self, q: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
    ) -> torch.Tensor:
        q = _rows(q)
        out = torch.zeros(q.shape, dtype=q.dtype)
        desc = self._describe(q, layer_kv)
        starts, contexts = meta.query_starts.contiguous(), meta.context_lens.contiguous()
        tables = meta.block_tables.contiguous()
        desc.num_seqs, desc.table_width = tables.shape
        desc.query_starts, desc.context_lens = starts.data_ptr(), contexts.data_ptr()
        desc.block_tables = tables.data_ptr()
        desc.q, desc.q_stride, desc.out = q.data_ptr(), q.stride(0), out.data_ptr()
        self._attention.attend(desc)
        return out

    def _describe(self, rows: torch.Tensor, layer_kv: torch.Tensor) -> AttentionDesc:
        desc = self._desc
        desc.num_tokens, desc.row_element = len(rows), _ELEMENTS[rows.dtype]
        desc.layer_kv, desc.kv_element = layer_kv.data_ptr(), _ELEMENTS[layer_kv.dtype]
        desc.num_blocks = len(layer_kv)
        desc.block_stride, desc.value_stride, desc.head_stride = layer_kv.stride()[:3]
        return desc


@cache
def _team(threads: int) -> Team:
    """Return the threads that all layers of all models share."""
    return Team(threads)


def _rows(rows: torch.Tensor) -> torch.Tensor:
    """Return rows whose heads follow one another; the rows themselves may be apart."""
    heads_are_joined = rows.stride(2) == 1 and rows.stride(1) == rows.shape[2]
    return rows if heads_are_joined else rows.contiguous()
