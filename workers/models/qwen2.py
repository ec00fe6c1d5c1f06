"""Qwen2 and Qwen2.5: Mistral's layers with a bias on q, k and v (`spec.attention_bias`)."""

from stafette.workers.models.mistral import Mistral


class Qwen2(Mistral):
    """The shared attention asks the checkpoint for the biases that the spec promises."""
