"""The fallback that keeps up: sequences of like shape are gathered together, then multiplied.

Padding at most doubles the work (see torch_plan). Few queries run as batched products, many through
torch's own flash attention. Who decodes is gathered once, and then followed (torch_copies).
"""

import torch
from torch.nn import functional

from stafette.workers.attention.backend import AttentionBackend, AttentionMetadata, AttentionShape
from stafette.workers.attention.paged_pool import gather, store
from stafette.workers.attention.torch_copies import Copies, Kept
from stafette.workers.attention.torch_plan import (
    MANY_QUERIES,
    MOST_COPIED,
    Group,
    Plan,
    make_plan,
)


class TorchAttention(AttentionBackend):
    """Serves every shape, device and pool dtype; reads the lengths on the host."""

    name = "torch"
    beside_pool = MOST_COPIED

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self._copies: dict[int, Copies] = {}

    @classmethod
    def why_not(cls, shape: AttentionShape, device: torch.device, kv_dtype: str) -> str | None:
        return None

    def write(
        self, k: torch.Tensor, v: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
    ) -> None:
        plan = self._plan(layer_kv, meta, k.dtype)
        if plan.stored is not None:
            k, v = k[plan.stored], v[plan.stored]
        store(k, v, layer_kv, plan.slots)

    def attend(
        self, q: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
    ) -> torch.Tensor:
        plan = self._plan(layer_kv, meta, q.dtype)
        if len(plan.groups) == 1 and plan.groups[0].tokens is None:
            return self._attend_group(q, layer_kv, plan.groups[0])
        out = torch.zeros_like(q)  # padded rows belong to no group
        for group in plan.groups:
            out[group.tokens] = self._attend_group(q[group.tokens], layer_kv, group)
        return out

    def _plan(self, layer_kv: torch.Tensor, meta: AttentionMetadata, dtype: torch.dtype) -> Plan:
        if not isinstance(meta.plan, Plan):
            meta.plan = make_plan(self.shape, layer_kv, meta, dtype, self._copies)
        return meta.plan

    def _attend_group(self, q: torch.Tensor, layer_kv: torch.Tensor, group: Group) -> torch.Tensor:
        """Return attention for the group's tokens, [sequences * query_len, heads, head_dim]."""
        if group.kept is not None:
            return self._attend_kept(q, layer_kv, group, group.kept)
        assert group.blocks is not None
        keys, values = gather(layer_kv, group.blocks, q.dtype)
        queries = q.reshape(len(keys), group.query_len, *q.shape[1:]).transpose(1, 2)
        run = self._flash if group.query_len >= MANY_QUERIES else self._products
        return run(queries, keys, values, group).transpose(1, 2).reshape(q.shape)

    def _attend_kept(
        self, q: torch.Tensor, layer_kv: torch.Tensor, group: Group, kept: Kept
    ) -> torch.Tensor:
        keys, values = kept.read(layer_kv, q.dtype)
        queries = kept.by_place(q)[:, :, None]
        return kept.by_row(self._products(queries, keys, values, group)[:, :, 0])

    def _flash(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: Group
    ) -> torch.Tensor:
        if group.causal:
            keys, values = keys[:, :, : group.query_len], values[:, :, : group.query_len]
        return functional.scaled_dot_product_attention(
            q,
            keys,
            values,
            attn_mask=group.seen,
            is_causal=group.causal,
            scale=self.shape.scale,
            enable_gqa=True,
        )

    def _products(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: Group
    ) -> torch.Tensor:
        """Let the query heads that share a KV head be rows of one product."""
        sequences, kv_heads, context, head_dim = keys.shape
        rows = (q * self.shape.scale).reshape(sequences * kv_heads, -1, head_dim)
        scores = torch.bmm(rows, keys.flatten(0, 1).transpose(1, 2))
        if group.bias is not None:
            scores.view(sequences, -1, group.query_len, context).add_(group.bias)
        # A softmax in bfloat16 is computed in float32, and rounded at its end.
        return torch.bmm(scores.softmax(dim=-1), values.flatten(0, 1)).view(q.shape)
