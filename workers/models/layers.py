"""The layers that all decoders share. They work on flattened tokens: [tokens, hidden]."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from stafette.workers.attention.backend import AttentionBackend, AttentionMetadata
from stafette.workers.gpu.launching import applies
from stafette.workers.models import fused
from stafette.workers.models.fused import Around, HeadNorms
from stafette.workers.models.linear import Adapters, OneTokenKernel
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
        self.weight, self.eps = weight, eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def of_sum(self, x: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x + added, and that normed."""
        if applies(x):
            return fused.add_rms_norm(x, added, self.weight, self.eps)
        x = x + added
        return x, self(x)


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
        return self.out(self.mix(self.qkv(x, step.adapters), step), step.adapters)

    def mix(self, qkv: torch.Tensor, step: Step) -> torch.Tensor:
        """Attend: from [tokens, q, k and v of all heads] to [tokens, all heads]."""
        heads = qkv.view(len(qkv), -1, self._head_dim)
        rotating = self._num_heads + self._num_kv_heads
        turned = self._turned(heads[:, :rotating], step)
        q, k, v = turned[:, : self._num_heads], turned[:, self._num_heads :], heads[:, rotating:]
        layer_kv = step.kv[self._layer]
        step.attention.write(k, v, layer_kv, step.meta)
        return step.attention.attend(q, layer_kv, step.meta).reshape(len(qkv), -1)

    def _turned(self, heads: torch.Tensor, step: Step) -> torch.Tensor:
        if not applies(heads):
            return rotate(self._normed(heads), step.cos, step.sin)
        fused.norm_rope(heads, self._num_heads, self._head_norms(), step.cos, step.sin)
        return heads

    def _head_norms(self) -> HeadNorms | None:
        if self._q_norm is None or self._k_norm is None:
            return None
        return HeadNorms(self._q_norm.weight, self._k_norm.weight, self._q_norm.eps)

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
    if applies(gate_up):
        return fused.silu_and_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


@dataclass(frozen=True, slots=True)
class Chain:
    """A dense layer's four products, where each takes norms, gate and additions along."""

    qkv: OneTokenKernel
    out: OneTokenKernel
    gate_up: OneTokenKernel
    down: OneTokenKernel


def _chain(attention: Attention, feed_forward: FeedForward) -> Chain | None:
    if not isinstance(feed_forward, SwiGlu):
        return None
    linears = attention.qkv, attention.out, feed_forward.gate_up, feed_forward.down
    kernels = [linear.one_token for linear in linears if linear.one_token is not None]
    return Chain(*kernels) if len(kernels) == len(linears) else None


class DecoderLayer:
    """Attention, then the feed-forward, each after a norm and added to what came in."""

    def __init__(
        self, weights: WeightLoader, attention: Attention, feed_forward: FeedForward
    ) -> None:
        eps, size = weights.spec.rms_norm_eps, weights.spec.hidden_size
        self._before = RmsNorm(weights.vector("input_layernorm.weight", size), eps)
        self._between = RmsNorm(weights.vector("post_attention_layernorm.weight", size), eps)
        self.attention, self.feed_forward = attention, feed_forward
        self._chain = _chain(attention, feed_forward)

    def __call__(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        if len(x) == 1 and self._chain is not None and step.adapters is None:
            return self._one_token(x, step, self._chain)
        x, normed = self._between.of_sum(x, self.attention(self._before(x), step))
        return x + self.feed_forward(normed, step)

    def _one_token(self, x: torch.Tensor, step: Step, chain: Chain) -> torch.Tensor:
        before, between = self._before, self._between
        qkv = chain.qkv.one_token(x, Around(before.weight, before.eps))
        x = chain.out.one_token(self.attention.mix(qkv, step), Around(residual=x))
        inner = chain.gate_up.one_token(x, Around(between.weight, between.eps, gated=True))
        return chain.down.one_token(inner, Around(residual=x))
