"""What blocks hold: every word tells its block, its place and the version it was written with."""

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 4096
NUM_BLOCKS = 2048
POOL_BYTES = NUM_BLOCKS * BLOCK_BYTES

_WORDS = BLOCK_BYTES // 8
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_INSIDE = np.arange(_WORDS, dtype=np.uint64)

Words = npt.NDArray[np.uint64]


def block_content(block: int, version: int) -> Words:
    head = np.uint64((version << 24 | block) & 0xFFFFFFFFFFFF) << np.uint64(12)
    return (head + _INSIDE + np.uint64(1)) * _FACTOR
