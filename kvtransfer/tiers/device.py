"""The device's side of a copy, as an engine shows it to the tiers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stafette.kvtransfer.errors import InvalidValue

Rows = npt.NDArray[np.uint8]  # [blocks, bytes of a block]


class DeviceBlocks(ABC):
    """Copies lists of blocks between device slots and rows of the host pool, pair by pair.

    Both methods return when the copy is made: bytes that were copied out may be overwritten, bytes
    that were copied in may be read by whatever is put on the device from then on. They are called
    by threads of the store, several at once, never for the same slot.
    """

    num_blocks: int
    block_bytes: int

    def prepare(self, pool: Rows) -> None:  # noqa: B027  may be left as it is
        """Called once, with the host pool: to pin its pages, for example."""

    @abstractmethod
    def copy_out(self, slots: Sequence[int], pool: Rows, rows: Sequence[int]) -> None:
        """Copy device slots into rows of the pool."""

    @abstractmethod
    def copy_in(self, slots: Sequence[int], pool: Rows, rows: Sequence[int]) -> None:
        """Copy rows of the pool into device slots."""


class ArrayBlocks(DeviceBlocks):
    """Device blocks that lie in host memory, as those of an engine on the CPU do."""

    def __init__(self, blocks: Rows) -> None:
        if blocks.ndim != 2 or blocks.dtype != np.uint8 or not blocks.flags.c_contiguous:
            shown = f"{blocks.dtype}{list(blocks.shape)}"
            raise InvalidValue("blocks", shown, "must be contiguous uint8 of [blocks, bytes]")
        self.num_blocks, self.block_bytes = blocks.shape
        self._blocks = blocks

    # One row at a time: as fast as one call for all, and other threads get their turns.

    def copy_out(self, slots: Sequence[int], pool: Rows, rows: Sequence[int]) -> None:
        for slot, row in zip(slots, rows, strict=True):
            pool[row] = self._blocks[slot]

    def copy_in(self, slots: Sequence[int], pool: Rows, rows: Sequence[int]) -> None:
        for slot, row in zip(slots, rows, strict=True):
            self._blocks[slot] = pool[row]
