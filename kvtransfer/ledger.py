"""The ledger: which leases live and how often blocks were overwritten, where readers can see it.

It lies in shared memory that only the owner can write. A reader on the same host looks before it
copies and again afterwards: what is unchanged then was unchanged all the time, because the owner
strikes out a lease, or counts a block up, before anything overwrites the block.
"""

import numpy as np
import numpy.typing as npt

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.extents import Uint64s
from stafette.kvtransfer.memory import SharedMemory, map_to_read

MAGIC = 0x3145_4741_4C46_5453  # "STFLAGE1" as a little-endian word
_HEAD_WORDS = 8
_WORD_BYTES = 8
_EPOCH, _NUM_SLOTS = 1, 2  # places in the head, behind MAGIC


class Ledger:
    """The owner's side. Slots hold the ids of the living leases, 0 where there is none."""

    def __init__(self, epoch: int, num_slots: int = 1 << 16) -> None:
        if num_slots < 1:
            raise InvalidValue("num_slots", num_slots, "must be at least 1")
        self.memory = SharedMemory("ledger", (_HEAD_WORDS + num_slots) * _WORD_BYTES)
        words = self.memory.array.view(np.uint64)
        words[:3] = MAGIC, epoch, num_slots
        self.epoch = epoch
        self._slots = words[_HEAD_WORDS:]
        self._generations: dict[str, SharedMemory] = {}

    @property
    def num_slots(self) -> int:
        return len(self._slots)

    @property
    def epoch_address(self) -> int:
        return self._slots.ctypes.data - (_HEAD_WORDS - _EPOCH) * _WORD_BYTES

    def slot_address(self, slot: int) -> int:
        """Return where native code finds the slot's word."""
        return self._slots.ctypes.data + slot * _WORD_BYTES

    def write(self, slot: int, lease_id: int) -> None:
        self._slots[slot] = lease_id

    def strike(self, slot: int) -> None:
        """End the lease in a slot, for every reader on this host."""
        self._slots[slot] = 0

    def end_epoch(self) -> None:
        """Nothing is valid any more."""
        self.memory.array.view(np.uint64)[_EPOCH] = 0
        self._slots[:] = 0

    def add_region(self, name: str, num_blocks: int) -> None:
        nbytes = (num_blocks + 1) * _WORD_BYTES  # the last word is 0 as long as the region is there
        self._generations[name] = SharedMemory(f"generations-{name}", nbytes)

    def remove_region(self, name: str) -> None:
        """Make every block of it stale, tell that it is gone, then forget it."""
        memory = self._generations.pop(name, None)
        if memory is None:
            return  # gone with the ledger
        memory.array.view(np.uint64)[:] += np.uint64(1)
        memory.close()

    def generations_memory(self, name: str) -> SharedMemory:
        return self._generations[name]

    def generations(self, name: str) -> Uint64s:
        """Return the counts of all blocks of a region: the live ones, not a copy."""
        return self._generations[name].array.view(np.uint64)[:-1]

    def overwrite(self, name: str, blocks: npt.NDArray[np.integer]) -> None:
        """Count blocks up, before they are overwritten."""
        self.generations(name)[blocks] += np.uint64(1)

    def close(self) -> None:
        self.end_epoch()
        for name in list(self._generations):
            self.remove_region(name)
        self.memory.close()


class LedgerView:
    """A reader's side of a peer's ledger, live."""

    def __init__(self, fd: int, nbytes: int) -> None:
        self.words: Uint64s = map_to_read(fd, nbytes).view(np.uint64)
        if len(self.words) < _HEAD_WORDS or int(self.words[0]) != MAGIC:
            raise InvalidValue("ledger", nbytes, "is not a ledger of this version")
        if len(self.words) != _HEAD_WORDS + int(self.words[_NUM_SLOTS]):
            raise InvalidValue("ledger", nbytes, "does not have the size that its head tells")

    @property
    def num_slots(self) -> int:
        return len(self.words) - _HEAD_WORDS

    @property
    def epoch(self) -> int:
        return int(self.words[_EPOCH])

    @property
    def epoch_address(self) -> int:
        return self.words.ctypes.data + _EPOCH * _WORD_BYTES

    def slot_address(self, slot: int) -> int:
        """Return where native code finds the slot's word."""
        return self.words.ctypes.data + (_HEAD_WORDS + slot) * _WORD_BYTES

    def holds(self, slot: int, lease_id: int) -> bool:
        return int(self.words[_HEAD_WORDS + slot]) == lease_id
