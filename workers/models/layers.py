"""The layers that all decoders share. They work on flattened tokens: [tokens, hidden]."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from stafette.workers.attention.backend import AttentionBackend, AttentionMetadata
from stafette.workers.models.linear import Adapters
from stafette.workers.models.loading import Matrix, WeightLoader
from stafette.workers.models.rope import rotate


@dataclass(slots=True)
class Step:
    """What the layers know of a step beside its hidden states."""

    cos: torch.Tensor
    sin: torch.Tensor
    kv: list[torch.Tensor]  # the pool, one view a layer
    attention: AttentionBackend
    meta: AttentionMetadata
    adapters: Adapters | None = None


class FeedForward(Protocol):
    """The second half of a layer."""

    @property
    def recordable(self) -> bool:
        """Whether a CUDA graph can hold it: it never reads a tensor on the host."""
        ...

    def __call__(self, x: torch.Tensor, step: Step) -> torch.Tensor: ...


class RmsNorm:
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self._weight, self._eps = weight, eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, self._weight.shape, self._weight, self._eps)


class Attention:
    """Fused q, k and v; a norm over their heads where the model has one; rope; output."""

    def __init__(self, weights: WeightLoader, layer: int) -> None:
        spec, own = weights.spec, weights.within("self_attn.")
        self._layer, self._head_dim = layer, spec.head_dim
        self._num_heads = weights.tp.count(spec.num_heads)
        self._num_kv_heads = weights.tp.count(spec.num_kv_heads)
        rows = {"q_proj": spec.q_size, "k_proj": spec.kv_size, "v_proj": spec.kv_size}
        self.qkv = own.column(
            [
                Matrix(name, size, spec.hidden_size, spec.head_dim, spec.attention_bias)
                for name, size in rows.items()
            ]
        )
        self.out = own.row(Matrix("o_proj", spec.hidden_size, spec.q_size, spec.head_dim))
        self._q_norm = self._k_norm = None
        if spec.qk_norm:
            self._q_norm = RmsNorm(own.vector("q_norm.weight", spec.head_dim), spec.rms_norm_eps)
            self._k_norm = RmsNorm(own.vector("k_norm.weight", spec.head_dim), spec.rms_norm_eps)

    def __call__(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        num_tokens = len(x)
        heads = self.qkv(x, step.adapters).view(num_tokens, -1, self._head_dim)
        rotating = self._num_heads + self._num_kv_heads
        turned = rotate(self._normed(heads[:, :rotating]), step.cos, step.sin)
        q, k, v = turned[:, : self._num_heads], turned[:, self._num_heads :], heads[:, rotating:]
        layer_kv = step.kv[self._layer]
        step.attention.write(k, v, layer_kv, step.meta)
        mixed = step.attention.attend(q, layer_kv, step.meta)
        return self.out(mixed.reshape(num_tokens, -1), step.adapters)

    def _normed(self, heads: torch.Tensor) -> torch.Tensor:
        if self._q_norm is None or self._k_norm is None:
            return heads
        q, k = heads[:, : self._num_heads], heads[:, self._num_heads :]
        return torch.cat((self._q_norm(q), self._k_norm(k)), 1)


class SwiGlu:
    """down(silu(gate(x)) * up(x)), gate and up fused."""

    recordable = True

    def __init__(self, weights: WeightLoader) -> None:
        spec, own = weights.spec, weights.within("mlp.")
        width, hidden = spec.intermediate_size, spec.hidden_size
        self.gate_up = own.column([Matrix(n, width, hidden) for n in ("gate_proj", "up_proj")])
        self.down = own.row(Matrix("down_proj", hidden, width))

    def __call__(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        return self.down(swiglu(self.gate_up(x, step.adapters)), step.adapters)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


class DecoderLayer:
    """Attention, then the feed-forward, each after a norm and added to what came in."""

    def __init__(
        self, weights: WeightLoader, attention: Attention, feed_forward: FeedForward
    ) -> None:
        eps, size = weights.spec.rms_norm_eps, weights.spec.hidden_size
        self._before = RmsNorm(weights.vector("input_layernorm.weight", size), eps)
        self._between = RmsNorm(weights.vector("post_attention_layernorm.weight", size), eps)
        self.attention, self.feed_forward = attention, feed_forward

    def __call__(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        x = x + self.attention(self._before(x), step)
        return x + self.feed_forward(self._between(x), step)
