"""Attention written to be read: a loop over sequences, in float32."""

import math

import torch

from stafette.workers.attention.backend import AttentionBackend, AttentionMetadata, AttentionShape
from stafette.workers.attention.paged_pool import FP8, to_pool


class ReferenceAttention(AttentionBackend):
    """Serves every shape, device and pool dtype; needs nothing but torch."""

    name = "reference"

    @classmethod
    def why_not(cls, shape: AttentionShape, device: torch.device, kv_dtype: str) -> str | None:
        return None

    def write(
        self, k: torch.Tensor, v: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
    ) -> None:
        real = meta.slots >= 0
        blocks = meta.slots[real] // self.shape.block_size
        offsets = meta.slots[real] % self.shape.block_size
        pool = layer_kv.view(torch.uint8) if layer_kv.dtype == FP8 else layer_kv
        for index, values in enumerate((k, v)):
            pool[blocks, index, :, offsets] = to_pool(values[real], layer_kv.dtype).view(pool.dtype)

    def attend(
        self, q: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
    ) -> torch.Tensor:
        out = torch.zeros_like(q)
        starts = meta.query_starts.tolist()
        for row, context_len in enumerate(meta.context_lens.tolist()):
            rows = slice(starts[row], starts[row + 1])
            if context_len > 0:
                keys, values = self._context(layer_kv, meta.block_tables[row], context_len)
                out[rows] = self._one(q[rows].float(), keys, values).to(q.dtype)
        return out

    def _context(
        self, layer_kv: torch.Tensor, blocks: torch.Tensor, context_len: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a sequence's K and V, each [num_heads, context, head_dim] in float32."""
        size = self.shape.block_size
        used = blocks[: math.ceil(context_len / size)].long()
        pool = layer_kv.view(torch.uint8) if layer_kv.dtype == FP8 else layer_kv
        pages = pool[used].view(layer_kv.dtype).float()  # [blocks, 2, kv heads, block, head_dim]
        context = pages.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :context_len]
        group = self.shape.num_heads // self.shape.num_kv_heads
        keys, values = context.repeat_interleave(group, dim=1)
        return keys, values

    def _one(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("qhd,hkd->hqk", q, keys) * self.shape.scale
        hidden = ~visible(len(q), keys.shape[1], self.shape.sliding_window, q.device)
        weights = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
        return torch.einsum("hqk,hkd->qhd", weights, values)


def visible(
    query_len: int, context_len: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """Return which of the context's positions each of its last `query_len` tokens sees."""
    queries = torch.arange(context_len - query_len, context_len, device=device)[:, None]
    keys = torch.arange(context_len, device=device)[None, :]
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)
