"""Packs ranges of a region into a staging buffer, and unpacks them: host memory and GPUs."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import numpy as np

from stafette.kvtransfer.memory import Bytes
from stafette.kvtransfer.regions import LocalRegion
from stafette.kvtransfer.transports.cuts import Part

# A part whose ranges have no common grain of this size is copied range by range.
_MIN_GRAIN_BYTES = 64
_WORD_BYTES = 8


class Pool(ABC):
    """Buffers are tensors of bytes, as long as the part."""

    @abstractmethod
    def gather(self, part: Part, buffer: Any) -> None:
        """Copy the part's ranges into the buffer. A host's buffer has them on return."""

    @abstractmethod
    def scatter(self, part: Part, buffer: Any) -> None:
        """Copy the buffer into the part's ranges."""

    @abstractmethod
    def settle(self) -> None:
        """Return when everything that was gathered and scattered is in its place."""


class HostPool(Pool):
    def __init__(self, memory: Bytes) -> None:
        self._memory = memory.data

    def gather(self, part: Part, buffer: Any) -> None:
        memory, into, end = self._memory, memoryview(buffer.numpy()), 0
        for offset, length in zip(part.offsets.tolist(), part.lengths.tolist(), strict=True):
            start, end = end, end + length
            into[start:end] = memory[offset : offset + length]

    def scatter(self, part: Part, buffer: Any) -> None:
        memory, source, end = self._memory, memoryview(buffer.numpy()), 0
        for offset, length in zip(part.offsets.tolist(), part.lengths.tolist(), strict=True):
            start, end = end, end + length
            memory[offset : offset + length] = source[start:end]

    def settle(self) -> None:
        return


class DevicePool(Pool):
    """Memory of a GPU, by torch: one kernel gathers a part whose ranges are multiples of a grain.

    Runs on a stream of its own, so it waits for nothing that an engine computes. The owner grants
    a lease when its blocks are complete in memory, not when the kernel that fills them is queued.
    Tested with tensors in host memory, which need no stream; was not run on a GPU.
    """

    def __init__(self, tensor: Any, stream: Any) -> None:
        self._torch = import_module("torch")
        self._flat = tensor.detach().view(-1).view(self._torch.uint8)
        self._stream = stream

    def gather(self, part: Part, buffer: Any) -> None:
        with self._on_stream():
            grain = grain_of(part)
            if grain < _MIN_GRAIN_BYTES:
                self._each(part, lambda there, here: buffer[here].copy_(self._flat[there]))
            else:
                rows = self._rows(self._flat, grain)[self._numbers(part, grain)]
                self._rows(buffer, grain).copy_(rows)
        if buffer.device != self._flat.device:
            self.settle()

    def scatter(self, part: Part, buffer: Any) -> None:
        with self._on_stream():
            grain = grain_of(part)
            if grain < _MIN_GRAIN_BYTES:
                self._each(part, lambda there, here: self._flat[there].copy_(buffer[here]))
            else:
                rows = self._rows(buffer, grain).to(self._flat.device)
                self._rows(self._flat, grain).index_copy_(0, self._numbers(part, grain), rows)
        if buffer.device != self._flat.device:
            self.settle()  # the buffer is free again

    def settle(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _on_stream(self) -> AbstractContextManager[object]:
        if self._stream is None:
            return nullcontext()
        context: AbstractContextManager[object] = self._torch.cuda.stream(self._stream)
        return context

    def _rows(self, flat: Any, grain: int) -> Any:
        """Return the bytes as rows of a grain, in words where that goes: it is quicker."""
        whole = flat[: flat.numel() // grain * grain]
        if grain % _WORD_BYTES == 0 and whole.data_ptr() % _WORD_BYTES == 0:
            return whole.view(self._torch.int64).view(-1, grain // _WORD_BYTES)
        return whole.view(-1, grain)

    def _numbers(self, part: Part, grain: int) -> Any:
        """Return the numbers of the part's rows, in order."""
        counts = (part.lengths // np.uint64(grain)).astype(np.int64)
        firsts = (part.offsets // np.uint64(grain)).astype(np.int64)
        before = np.cumsum(counts) - counts
        numbers = np.repeat(firsts - before, counts) + np.arange(int(counts.sum()))
        return self._torch.from_numpy(numbers).to(self._flat.device)

    def _each(self, part: Part, copy: Any) -> None:
        end = 0
        for offset, length in zip(part.offsets.tolist(), part.lengths.tolist(), strict=True):
            start, end = end, end + length
            copy(slice(offset, offset + length), slice(start, end))


class Streams:
    """The stream of each GPU on which one thread packs and unpacks."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}

    def of(self, device: int) -> Any:
        if device not in self._made:
            self._made[device] = import_module("torch").cuda.Stream(device)
        return self._made[device]


def pool_of(region: LocalRegion, streams: Streams) -> Pool:
    if region.info.kind == "cuda":
        return DevicePool(region.owner, streams.of(region.info.device))
    assert region.memory is not None
    return HostPool(region.memory)


def grain_of(part: Part) -> int:
    """Return the largest size of which all offsets and lengths are multiples."""
    return int(np.gcd.reduce(np.concatenate([part.offsets, part.lengths])))
