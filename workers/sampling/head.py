"""The likeliest tokens of each row, in order."""

import numpy as np
import numpy.typing as npt

from stafette.workers.sampling.logits import Floats, Floats32, Ints, Scaled

_LOWEST = np.finfo(np.float32).min
_SIGN = np.uint32(1 << 31)
_NOTHING = np.uint64(0xFF800000 << 32)  # the key of token 0 at -inf
_TOKEN_BITS = np.uint64((1 << 32) - 1)

Found = tuple[Ints, Ints, Floats32]  # rows, tokens, values


class Head:
    """Each row's tokens from a bound upwards, the lower id first among equals.

    Rows that hold fewer than the fullest one are filled up with tokens of weight 0.
    """

    def __init__(self, found: Found, bounds: Floats32, tops: Floats32) -> None:
        rows, ids, values = found
        self.known = np.bincount(rows, minlength=len(bounds))  # tokens of each row
        self.complete = bounds <= _LOWEST  # rows of which no token is missing
        columns = np.arange(len(rows)) - np.repeat(np.cumsum(self.known) - self.known, self.known)
        keys = np.full((len(bounds), int(self.known.max())), _NOTHING, np.uint64)
        keys[rows, columns] = _keys(values, ids)
        keys.sort(axis=-1)
        self.tokens: Ints = (keys & _TOKEN_BITS).astype(np.int64)
        self.logits: Floats = _values(keys).astype(np.float64)
        self.weights: Floats = np.exp(self.logits - tops[:, None])
        self.ends: Floats = np.cumsum(self.weights, axis=-1)

    @classmethod
    def of(cls, scaled: Scaled, bounds: Floats32) -> "Head":
        return cls(scaled.at_least(bounds), bounds, scaled.tops)

    @classmethod
    def of_row(cls, values: Floats32, bound: float, top: np.float32) -> "Head":
        """Return the head of a single row that is on the host already."""
        limit = np.float32(bound)
        tokens = np.flatnonzero(values >= limit)
        found = (np.zeros(len(tokens), np.int64), tokens, values[tokens])
        return cls(found, np.array([limit]), np.array([top]))


def _keys(values: Floats32, tokens: Ints) -> npt.NDArray[np.uint64]:
    """Return numbers that sort by falling value, then by rising token: faster than any argsort."""
    bits = (values + np.float32(0)).view(np.uint32)  # + 0 makes -0.0 equal to 0.0
    falling = np.where(bits & _SIGN, bits, ~(bits | _SIGN))
    return falling.astype(np.uint64) << np.uint64(32) | tokens.astype(np.uint64)


def _values(keys: npt.NDArray[np.uint64]) -> Floats32:
    falling = (keys >> np.uint64(32)).astype(np.uint32)
    return np.where(falling & _SIGN, falling, ~(falling | _SIGN)).view(np.float32)


def head_bounds(peaks: Floats32, least: Ints) -> Floats32:
    """Return a bound for each row that `least` tokens reach: as many blocks have one there."""
    rows, blocks = peaks.shape
    ordered = np.sort(peaks, axis=-1)
    bounds = ordered[np.arange(rows), np.maximum(blocks - least, 0)]
    return np.where(least < blocks, np.maximum(bounds, _LOWEST), _LOWEST)
