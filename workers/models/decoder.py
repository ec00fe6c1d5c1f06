"""The decoder that every architecture is: embedding, layers, a last norm, a head."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch.nn import functional

from stafette.workers.models.layers import Attention, DecoderLayer, FeedForward, RmsNorm, Step
from stafette.workers.models.linear import Kernel, Linear, dense_kernel
from stafette.workers.models.loading import WeightLoader
from stafette.workers.models.rope import Rope


class Decoder(ABC):
    """An architecture says what a layer is made of; the rest is the same for all."""

    def __init__(self, weights: WeightLoader) -> None:
        spec = self.spec = weights.spec
        self.dtype, self.device, self.tp = weights.dtype, weights.device, weights.tp
        inner = weights.within("model.")
        rows = spec.vocab_size, spec.hidden_size
        self._embedding = inner.table("embed_tokens.weight", *rows)
        self.layers = [
            self._layer(inner.within(f"layers.{index}."), index) for index in range(spec.num_layers)
        ]
        self._norm = RmsNorm(inner.vector("norm.weight", spec.hidden_size), spec.rms_norm_eps)
        tied = spec.tie_word_embeddings
        self._head = self._share(
            self._embedding if tied else weights.table("lm_head.weight", *rows)
        )
        self.rope = Rope(spec.rope, spec.head_dim, weights.device)

    @abstractmethod
    def attention(self, weights: WeightLoader, index: int) -> Attention:
        """Return layer `index`'s attention."""

    @abstractmethod
    def feed_forward(self, weights: WeightLoader, index: int) -> FeedForward:
        """Return layer `index`'s feed-forward."""

    @property
    def sliding_window(self) -> int | None:
        """How many positions, its own among them, a token sees; None: all before it."""
        return None

    @property
    def recordable(self) -> bool:
        """Whether a CUDA graph can hold `hidden`."""
        return all(layer.feed_forward.recordable for layer in self.layers)

    def hidden(self, token_ids: torch.Tensor, step: Step) -> torch.Tensor:
        """Return [tokens, hidden] after the last norm."""
        x = functional.embedding(token_ids, self._embedding)
        for layer in self.layers:
            x = layer(x, step)
        return self._norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 [rows, vocab] for rows of `hidden`."""
        shares = self.tp.all_gather(self._head(hidden))
        return shares[:, : self.spec.vocab_size].float()

    def linears(self) -> Iterator[Linear]:
        """Return every product that an adapter may add to."""
        for layer in self.layers:
            for block in (layer.attention, layer.feed_forward):
                yield from (value for value in vars(block).values() if isinstance(value, Linear))

    def _layer(self, weights: WeightLoader, index: int) -> DecoderLayer:
        feed_forward = self.feed_forward(weights, index)
        return DecoderLayer(weights, self.attention(weights, index), feed_forward)

    def _share(self, head: torch.Tensor) -> Kernel:
        """Keep this rank's rows of the head; the last rank's are filled up with zeros."""
        per_rank = -(-len(head) // self.tp.size)
        own = head[self.tp.rank * per_rank : (self.tp.rank + 1) * per_rank]
        if len(own) < per_rank:
            own = functional.pad(own, (0, 0, 0, per_rank - len(own)))
        return dense_kernel(own)
