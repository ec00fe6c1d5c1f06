"""Draws lots among targets that cost the same.

A lot comes from names alone: it is the same in every router and on every run, and another one for
the next request. So equals share the work, also where routers cannot talk to each other.
"""

from functools import lru_cache
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", int, NDArray[np.uint64])

_DIGEST_BYTES = 8
_MASK = (1 << 64) - 1
_MOST_NAMES = 1 << 16


def number_of(name: str) -> int:
    """Return 64 bits that stand for a name."""
    digest = blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest()
    return int.from_bytes(digest, "little")


number_of_target = lru_cache(_MOST_NAMES)(number_of)  # these come again and again


def lot(request: int, target: Number) -> Number:
    """Return the target's lot, of names' numbers; the least one wins.

    It depends on every bit of both (the last steps of SplitMix64).
    """
    number: Any = target ^ request
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & _MASK
    drawn: Number = number ^ (number >> 31)
    return drawn
