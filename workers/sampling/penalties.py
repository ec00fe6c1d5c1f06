"""Penalties for tokens that were there before: repetition, presence, frequency."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from stafette.workers.sampling.logits import Floats32, Logits
from stafette.workers.sampling.params import SamplingParams


class TokenCounts:
    """The distinct tokens of one sequence, and how often each is in its output."""

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        self.params = params
        distinct = sorted(set(prompt))
        self._slots = {token: slot for slot, token in enumerate(distinct)}
        self._tokens = np.array(distinct, np.int64)
        self._counts = np.zeros(len(distinct), np.float32)

    def add(self, token: int) -> None:
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._tokens):
            room = max(64, slot)  # doubles: a token costs O(1) on average
            self._tokens = np.concatenate((self._tokens, np.zeros(room, np.int64)))
            self._counts = np.concatenate((self._counts, np.zeros(room, np.float32)))
        self._tokens[slot] = token
        self._counts[slot] += 1

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        return self._tokens[: len(self)]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        return self._counts[: len(self)]


def apply_penalties(logits: Logits, rows: Sequence[tuple[int, TokenCounts]]) -> None:
    """Change the given rows in place, in the order of vLLM: repetition, frequency, presence.

    Repetition looks at prompt and output, the other two at the output alone.
    """
    if not rows:
        return
    tokens = np.concatenate([table.tokens for _, table in rows])
    counts = np.concatenate([table.counts for _, table in rows])
    lengths = [len(table) for _, table in rows]
    where = np.repeat(np.array([row for row, _ in rows], np.int64), lengths)

    def each(name: str) -> Floats32:
        values = [getattr(table.params, name) for _, table in rows]
        return np.repeat(np.array(values, np.float32), lengths)

    values = logits.take(where, tokens)
    repetition = each("repetition_penalty")
    values = np.where(values > 0, values / repetition, values * repetition)
    values -= each("frequency_penalty") * counts
    values -= each("presence_penalty") * (counts > 0)
    logits.put(where, tokens, values)
