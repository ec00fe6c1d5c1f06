"""Qwen3-MoE: Qwen3 whose feed-forward is sparse in all layers but the ones that the spec lists."""

from stafette.workers.models.layers import FeedForward, SwiGlu
from stafette.workers.models.loading import WeightLoader
from stafette.workers.models.moe import SparseFeedForward
from stafette.workers.models.qwen3 import Qwen3


class Qwen3Moe(Qwen3):
    """A router and its experts stand where Qwen3 has one SwiGLU."""

    def feed_forward(self, weights: WeightLoader, index: int) -> FeedForward:
        moe = self.spec.moe
        if moe is None or not self.spec.is_sparse(index):
            return SwiGlu(weights)
        return SparseFeedForward(weights, moe)
