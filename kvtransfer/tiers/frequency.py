"""How often a block was used of late, of blocks that are not here too: a count-min sketch.

Four rows of small counters. A block's hash is even already, so its four words choose one counter in
each row; the smallest of them is the estimate, never too low until they all are halved, which
happens after ten uses for each block that should be told apart (TinyLFU: Einziger et al., 2017).
"""

import struct

import numpy as np

from stafette.kvtransfer.errors import InvalidValue

MOST = 15  # a counter counts so far
_WORDS = struct.Struct("<4I")  # of a hash
_USES_A_KEY = 10
_COUNTERS_A_KEY = 8  # in a row: with four rows, hardly a block is taken for another


class FrequencySketch:
    """Not thread-safe. Takes 32 to 64 bytes for each of `num_keys` blocks."""

    def __init__(self, num_keys: int) -> None:
        if num_keys < 1:
            raise InvalidValue("num_keys", num_keys, "must be at least 1")
        width = 1 << (_COUNTERS_A_KEY * num_keys - 1).bit_length()
        self._mask = width - 1
        self._rows = [np.zeros(width, np.uint8) for _ in range(4)]
        self._cells = [row.data for row in self._rows]  # quicker to index
        self._until_halving = _USES_A_KEY * num_keys
        self._uses = 0

    def count(self, key: bytes) -> None:
        """Note a use."""
        mask = self._mask
        for cells, word in zip(self._cells, _WORDS.unpack(key), strict=True):
            place = word & mask
            if cells[place] < MOST:
                cells[place] += 1
        self._uses += 1
        if self._uses >= self._until_halving:
            self._halve()

    def estimate(self, key: bytes) -> int:
        mask, words = self._mask, _WORDS.unpack(key)
        found = [cells[word & mask] for cells, word in zip(self._cells, words, strict=True)]
        return int(min(found))

    def _halve(self) -> None:
        for row in self._rows:
            row >>= 1
        self._uses //= 2
