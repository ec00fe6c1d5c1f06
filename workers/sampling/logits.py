"""The few operations of sampling that touch a whole vocabulary, as contracts.

The rest works on what little they return, in numpy on the host. Reductions run in the same order
for every row, so that a row's result does not depend on its companions.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_MAX_BLOCKS = 768
FOLD = 16  # a block's width is a multiple of this; no more float32 than this are added up


class Logits(ABC):
    """Rows of logits [rows, vocabulary], float32."""

    rows_at_once: int  # more are better worked on in parts

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, rows: Sequence[int]) -> "Logits":
        """Return these rows, as a view where they are consecutive."""

    @abstractmethod
    def copy(self) -> "Logits":
        """Return a copy that may be changed."""

    @abstractmethod
    def take(self, rows: Ints, tokens: Ints) -> Floats32:
        """Return the logit of each (row, token)."""

    @abstractmethod
    def put(self, rows: Ints, tokens: Ints, values: Floats32) -> None:
        """Overwrite the logit of each (row, token)."""

    @abstractmethod
    def keep(self, row: int, allowed: Bools) -> None:
        """Set every other token of this row to -inf."""

    @abstractmethod
    def argmax(self) -> tuple[Ints, Floats32]:
        """Return each row's likeliest token and its logit; a NaN counts as the largest."""

    @abstractmethod
    def count_above(self, values: Floats32) -> Ints:
        """Return how many logits of each row are larger than its value."""

    @abstractmethod
    def scaled(self, temperature: Floats32) -> "Scaled":
        """Return logits over temperature, as a distribution to draw from."""


class Scaled(ABC):
    """Logits over temperature. Token t is entry t // blocks of block t % blocks: neighbours, often
    alike in how common they are, stand in different blocks. The rest of a block is -inf.
    """

    peaks: Floats32  # [rows, blocks]: each block's largest
    tops: Floats32  # [rows]

    @abstractmethod
    def rows(self, rows: Ints) -> "Scaled": ...

    @abstractmethod
    def values(self, row: int) -> Floats32:
        """Return one row, on the host."""

    @abstractmethod
    def at_least(self, bounds: Floats32) -> tuple[Ints, Ints, Floats32]:
        """Return (rows, tokens, values) of all that reach their row's bound, in this order."""

    @abstractmethod
    def weigh(self) -> "Weights":
        """Return exp(value - top): what the tokens' probabilities are proportional to."""


class Weights(ABC):
    """Unnormalised probabilities, in the blocks of Scaled."""

    sums: Floats  # [rows, blocks]

    @abstractmethod
    def blocks(self, chosen: Ints) -> Floats32:
        """Return one block of each row: [rows, width]."""


def blocks_of(vocab: int) -> tuple[int, int]:
    """Return (width, number) of the blocks that hold a vocabulary."""
    blocks = min(_MAX_BLOCKS, vocab)
    return -(-vocab // (blocks * FOLD)) * FOLD, blocks


def slice_of(rows: Sequence[int]) -> slice | None:
    """Return consecutive rows as a slice, which takes no copy."""
    first, count = rows[0], len(rows)
    if rows[-1] - first != count - 1 or list(rows) != list(range(first, first + count)):
        return None
    return slice(first, first + count)
