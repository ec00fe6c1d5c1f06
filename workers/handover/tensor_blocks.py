"""Blocks of a pool on a GPU, as the tiers below it copy them.

Scattered blocks are gathered on the device and cross the bus in one piece, through pinned memory of
the calling thread's own; a stream of its own keeps the copies out of the engine's way. Tested on
the CPU, where torch's calls are the same; not run on a GPU.
"""

import threading
from collections.abc import Sequence

import numpy as np
import torch

from stafette.kvtransfer.connectors.connector import KvShare
from stafette.kvtransfer.connectors.tiered import host_blocks
from stafette.kvtransfer.tiers.device import DeviceBlocks, Rows


class TensorBlocks(DeviceBlocks):
    def __init__(self, pool: torch.Tensor) -> None:
        self._blocks = pool.view(torch.uint8).view(len(pool), -1)
        self.num_blocks, self.block_bytes = self._blocks.shape
        self._own = threading.local()

    def copy_out(self, slots: Sequence[int], pool: Rows, rows: Sequence[int]) -> None:
        with self._stream():
            stage = self._stage(len(slots))
            stage.copy_(self._blocks[self._index(slots)], non_blocking=True)
            self._settle()
        pool[np.asarray(rows, np.int64)] = stage.numpy()

    def copy_in(self, slots: Sequence[int], pool: Rows, rows: Sequence[int]) -> None:
        stage = self._stage(len(slots))
        np.take(pool, np.asarray(rows, np.int64), axis=0, out=stage.numpy())
        with self._stream():
            brought = stage.to(self._blocks.device, non_blocking=True)
            self._blocks[self._index(slots)] = brought
            self._settle()

    def _index(self, slots: Sequence[int]) -> torch.Tensor:
        return torch.tensor(slots, dtype=torch.int64, device=self._blocks.device)

    def _stage(self, count: int) -> torch.Tensor:
        """Return this thread's memory for so many blocks, which grows as it is needed."""
        stage: torch.Tensor | None = getattr(self._own, "stage", None)
        if stage is None or len(stage) < count:
            pinned = self._blocks.is_cuda
            stage = torch.empty(count, self.block_bytes, dtype=torch.uint8, pin_memory=pinned)
            self._own.stage = stage
        return stage[:count]

    def _stream(self) -> torch.cuda.StreamContext:
        """Let what follows go on this thread's stream; on a CPU there is none."""
        if self._blocks.is_cuda and not hasattr(self._own, "stream"):
            made = torch.cuda.Stream(self._blocks.device)  # type: ignore[no-untyped-call]
            self._own.stream = made
        return torch.cuda.stream(getattr(self._own, "stream", None))

    def _settle(self) -> None:
        if self._blocks.is_cuda:
            self._own.stream.synchronize()


def device_blocks(share: KvShare) -> DeviceBlocks:
    """Return the blocks of an engine's pool, wherever it lies."""
    buffer = share.buffer
    if isinstance(buffer, torch.Tensor) and buffer.is_cuda:
        return TensorBlocks(buffer)
    return host_blocks(share)
