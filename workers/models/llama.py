"""Llama and its kin (SmolLM2): attention and a SwiGLU feed-forward."""

from stafette.workers.models.decoder import Decoder
from stafette.workers.models.layers import Attention, FeedForward, SwiGlu
from stafette.workers.models.loading import WeightLoader


class Llama(Decoder):
    """The plain decoder; the others vary it."""

    def attention(self, weights: WeightLoader, index: int) -> Attention:
        return Attention(weights, index)

    def feed_forward(self, weights: WeightLoader, index: int) -> FeedForward:
        return SwiGlu(weights)
