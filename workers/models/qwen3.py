"""Qwen3: no bias, but a norm over each head of q and k ahead of rope (`spec.qk_norm`)."""

from stafette.workers.models.mistral import Mistral


class Qwen3(Mistral):
    """The shared attention loads the two norms that the spec promises."""
