"""How often a block was used of late, of blocks that are not here too: a count-min sketch.

Four rows of small counters. A block's hash is even already, so its four words choose one counter in
each row, and the smallest of them is the estimate. Now and then all are halved, which forgets what
was popular once (TinyLFU: Einziger et al., 2017).
"""

import struct
from collections.abc import Sequence

import numpy as np

from stafette.kvtransfer.errors import InvalidValue

MOST = 15  # a counter counts so far
_WORDS = struct.Struct("<4I")  # of a hash
_LEAST_KEYS = 1 << 15  # a small tier too sees many blocks before one comes back
_USES_A_KEY = 10  # until all are halved
_COUNTERS_A_KEY = 8  # in a row: with four rows, hardly a block is taken for another


class FrequencySketch:
    """Not thread-safe. Takes 32 to 64 bytes for each of `num_keys` blocks, 1 MiB at least."""

    def __init__(self, num_keys: int) -> None:
        if num_keys < 1:
            raise InvalidValue("num_keys", num_keys, "must be at least 1")
        num_keys = max(num_keys, _LEAST_KEYS)
        width = 1 << (_COUNTERS_A_KEY * num_keys - 1).bit_length()
        self._mask = width - 1
        self._rows = [np.zeros(width, np.uint8) for _ in range(4)]
        self._cells = [row.data for row in self._rows]  # quicker for a single key
        self._until_halving = _USES_A_KEY * num_keys
        self._uses = 0

    def count(self, keys: Sequence[bytes]) -> None:
        """Note a use of each; they differ."""
        places = np.frombuffer(b"".join(keys), "<u4").reshape(-1, 4) & np.uint32(self._mask)
        for number, row in enumerate(self._rows):
            found = row[places[:, number]]
            row[places[:, number]] = found + (found < MOST)
        self._uses += len(keys)
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
