"""Prompts made of pieces: equal pieces are equal tokens, so that prompts share what they should.

A trace names the blocks of its prompts, not their tokens; a made-up prompt is a shared beginning
and a rest of its own. Both are pieces here, whose tokens follow from their numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

VOCABULARY = 49_152  # of the mock workers
# Prompts use few of it: Python keeps one object of each number below 257, so that a list of a
# million tokens is a million pointers, and quickly made.
_FIRST_TOKEN = 3  # behind those that end an answer
_NUM_PLAIN = 256 - _FIRST_TOKEN
_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_PIECE_BITS = np.uint64(20)  # a piece is shorter than 2^20 tokens
_HALF = np.uint64(32)


class Piece(NamedTuple):
    """So many tokens; those of equal numbers begin alike."""

    number: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens as the router wants them and as an engine does."""

    words: npt.NDArray[np.uint32]
    token_ids: list[int]

    def __len__(self) -> int:
        return len(self.token_ids)

    def then(self, token_ids: Sequence[int], pieces: Sequence[Piece]) -> "Prompt":
        """Return the prompt that goes on with an answer, and with more behind it."""
        more = words_of(pieces)
        words = np.concatenate((self.words, np.array(token_ids, np.uint32), more))
        return Prompt(words, [*self.token_ids, *token_ids, *tokens_of(more)])


def prompt_of(pieces: Sequence[Piece]) -> Prompt:
    words = words_of(pieces)
    return Prompt(words, tokens_of(words))


def words_of(pieces: Sequence[Piece]) -> npt.NDArray[np.uint32]:
    """Return the tokens of some pieces, one behind the other."""
    lengths = np.array([piece.tokens for piece in pieces], np.int64)
    begins = np.cumsum(lengths) - lengths
    numbers = np.repeat(np.array([piece.number for piece in pieces], np.uint64), lengths)
    places = np.arange(lengths.sum(), dtype=np.int64) - np.repeat(begins, lengths)
    seeds = (numbers << _PIECE_BITS) + places.astype(np.uint64)
    mixed = (seeds * _STEP) ^ ((seeds * _STEP) >> _HALF)
    mixed = (mixed * _MIX) >> _HALF
    return (mixed % np.uint64(_NUM_PLAIN)).astype(np.uint32) + np.uint32(_FIRST_TOKEN)


def tokens_of(words: npt.NDArray[np.uint32]) -> list[int]:
    return list(words.astype(np.uint8).tobytes())
