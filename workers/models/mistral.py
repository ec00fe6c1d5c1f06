"""Mistral: Llama whose tokens may see no further back than a window."""

from stafette.workers.models.llama import Llama


class Mistral(Llama):
    """Also the one that keeps a head dimension of its own, which the spec carries."""

    @property
    def sliding_window(self) -> int | None:
        return self.spec.sliding_window
