"""The fallback that keeps up: sequences of like shape are gathered together, then multiplied.

Padding at most doubles the work (see torch_plan). Few queries run as batched products, many through
torch's own flash attention.
"""

import torch
from torch.nn import functional

from stafette.workers.attention.backend import AttentionBackend, AttentionMetadata, AttentionShape
from stafette.workers.attention.paged_pool import gather, store
from stafette.workers.attention.torch_plan import MANY_QUERIES, Group, Plan, make_plan


class TorchAttention(AttentionBackend):
    """Serves every shape, device and pool dtype; reads the lengths on the host."""

    name = "torch"

    @classmethod
    def why_not(cls, shape: AttentionShape, device: torch.device, kv_dtype: str) -> str | None:
        return None

    def write(
        self, k: torch.Tensor, v: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
    ) -> None:
        plan = self._plan(layer_kv, meta)
        if plan.stored is not None:
            k, v = k[plan.stored], v[plan.stored]
        store(k, v, layer_kv, plan.slots)

    def attend(
        self, q: torch.Tensor, layer_kv: torch.Tensor, meta: AttentionMetadata
    ) -> torch.Tensor:
        plan = self._plan(layer_kv, meta)
        if len(plan.groups) == 1 and plan.groups[0].tokens is None:
            return self._attend_group(q, layer_kv, plan.groups[0])
        out = torch.zeros_like(q)  # padded rows belong to no group
        for group in plan.groups:
            out[group.tokens] = self._attend_group(q[group.tokens], layer_kv, group)
        return out

    def _plan(self, layer_kv: torch.Tensor, meta: AttentionMetadata) -> Plan:
        if not isinstance(meta.plan, Plan):
            meta.plan = make_plan(self.shape, layer_kv, meta)
        return meta.plan

    def _attend_group(self, q: torch.Tensor, layer_kv: torch.Tensor, group: Group) -> torch.Tensor:
        """Return attention for the group's tokens, [sequences * query_len, heads, head_dim]."""
        keys, values = gather(layer_kv, group.blocks, q.dtype)
        queries = q.reshape(len(keys), group.query_len, *q.shape[1:]).transpose(1, 2)
        run = self._flash if group.query_len >= MANY_QUERIES else self._products
        return run(queries, keys, values, group).transpose(1, 2).reshape(q.shape)

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
        rows = q.reshape(sequences, kv_heads, -1, head_dim)
        scores = torch.matmul(rows, keys.transpose(-1, -2)).float().mul_(self.shape.scale)
        if group.bias is not None:
            scores.view(sequences, -1, group.query_len, context).add_(group.bias)
        mixed = torch.matmul(scores.softmax(dim=-1).to(q.dtype), values)
        return mixed.view(q.shape)
