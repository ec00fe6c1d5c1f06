"""A quantized checkpoint, spelled out: what `quantization: none` asks for."""

from collections.abc import Iterator

from stafette.workers.weights.checkpoint import Checkpoint, GroupedWeight, Weight


class DenseCheckpoint(Checkpoint):
    """Another checkpoint with its quantized matrices spelled out."""

    def __init__(self, inner: Checkpoint) -> None:
        self._inner = inner
        self.spec, self.quantization = inner.spec, "none"

    def names(self) -> Iterator[str]:
        return self._inner.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._inner.shape(name)

    def load(self, name: str) -> Weight:
        weight = self._inner.load(name)
        return weight.dequantize() if isinstance(weight, GroupedWeight) else weight
