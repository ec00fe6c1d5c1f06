"""What requests look like: how long, how much of them is cached, how unevenly they come.

Many samples are kept, for tails and for calm; when the newest tell of something else, the old ones
are let go at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from stafette.platform.planner.observation import Finished, Started

Values = NDArray[np.float64]

_KEPT = 2_000
_NEWEST = 64
_LOOK_EACH = 16  # rows
_USED = 200  # for sizing
_STRANGE = 5.0  # standard errors between the newest and all, from which all are of the past


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Arrays of one length for prompts, and of another for answers."""

    prompt_tokens: Values
    cached_tokens: Values
    answered_prompt_tokens: Values
    output_tokens: Values

    @classmethod
    def of(cls, prompt: float, output: float, cached: float = 0.0) -> "Shape":
        """Return the shape of requests that are all alike."""
        one = np.ones(1)
        return cls(
            prompt_tokens=one * prompt,
            cached_tokens=one * cached,
            answered_prompt_tokens=one * prompt,
            output_tokens=one * output,
        )

    @property
    def mean_output(self) -> float:
        return float(self.output_tokens.mean())

    @property
    def mean_prompt(self) -> float:
        return float(self.prompt_tokens.mean())

    @property
    def hit_rate(self) -> float:
        return float(self.cached_tokens.sum() / max(self.prompt_tokens.sum(), 1.0))

    @property
    def mean_context(self) -> float:
        """Return the mean context of a sequence that decodes: long answers are seen longer."""
        return self._moment_of_context(1)

    @property
    def context_spread(self) -> float:
        """Return the variance of such contexts over their mean's square."""
        return max(0.0, self._moment_of_context(2) / max(self.mean_context, 1.0) ** 2 - 1.0)

    def _moment_of_context(self, power: int) -> float:
        outputs = self.output_tokens
        contexts = self.answered_prompt_tokens + outputs / 2
        return float((outputs * contexts**power).sum() / max(outputs.sum(), 1.0))


class Samples:
    """Rows of numbers of which the newest decide whether the older ones still count."""

    def __init__(self, columns: int, watched: int) -> None:
        self._table = np.empty((2 * _KEPT, columns))  # the newest rows, in one piece
        self._begin = self._end = 0
        self._watched = watched  # the column whose mean is looked at
        self.shifts = 0
        self.seen = 0

    def __len__(self) -> int:
        return self._end - self._begin

    def add(self, rows: Iterable[tuple[float, ...]]) -> None:
        for row in rows:
            if self._end == len(self._table):
                self._move_to_front()
            self._table[self._end] = row
            self._end += 1
            self._begin = max(self._begin, self._end - _KEPT)
            self.seen += 1
            if self.seen % _LOOK_EACH == 0:
                self._look()

    def columns(self) -> list[Values]:
        return list(self._table[self._begin : self._end].T)

    def _move_to_front(self) -> None:
        rows = self._table[self._begin : self._end].copy()
        self._table[: len(rows)] = rows
        self._begin, self._end = 0, len(rows)

    def _look(self) -> None:
        if len(self) < 4 * _NEWEST:
            return
        values = self._table[self._begin : self._end, self._watched]
        old, new = values[:-_NEWEST], values[-_NEWEST:]
        error = sqrt((old.var() + new.var()) / 2 / _NEWEST) + 1e-9
        if abs(float(new.mean() - old.mean())) > _STRANGE * error:
            self.shifts += 1
            self._begin = self._end - _LOOK_EACH  # the others may be of before


class ShapeSeen:
    """Collects the shape; until there are samples, `assumed` stands for it."""

    def __init__(self, assumed: Shape) -> None:
        self._assumed = assumed
        self._prompts = Samples(2, watched=0)
        self._answers = Samples(2, watched=1)
        self._made: Shape | None = None
        self._made_at = 0
        self._shifts = 0

    def see(self, started: Iterable[Started], finished: Iterable[Finished]) -> None:
        self._prompts.add((s.prompt_tokens, min(s.cached_tokens, s.prompt_tokens)) for s in started)
        self._answers.add((f.prompt_tokens, f.output_tokens) for f in finished)

    def shape(self) -> Shape:
        """Return it as it was lately: it is asked for more often than it moves."""
        age = self._prompts.seen + self._answers.seen - self._made_at
        moved = self._prompts.shifts + self._answers.shifts != self._shifts
        if self._made is None or moved or age > 0.05 * (len(self._prompts) + len(self._answers)):
            self._made = self._make()
            self._made_at = self._prompts.seen + self._answers.seen
            self._shifts = self._prompts.shifts + self._answers.shifts
        return self._made

    def _make(self) -> Shape:
        assumed = self._assumed
        prompt, cached = assumed.prompt_tokens, assumed.cached_tokens
        answered, output = assumed.answered_prompt_tokens, assumed.output_tokens
        if len(self._prompts):
            prompt, cached = _thinned(self._prompts.columns(), by=lambda c: c[0] - c[1])
        if len(self._answers):
            answered, output = _thinned(self._answers.columns(), by=lambda c: c[1])
        elif len(self._prompts):
            answered = np.full(len(output), prompt.mean())
        return Shape(
            prompt_tokens=prompt,
            cached_tokens=cached,
            answered_prompt_tokens=answered,
            output_tokens=np.maximum(output, 1.0),
        )


def _thinned(columns: list[Values], by: Callable[[list[Values]], Values]) -> list[Values]:
    """Return rows that stand for all: every so-manieth of them, in the order that matters."""
    order = np.argsort(by(columns), kind="stable")
    if len(order) > _USED:
        places = (np.arange(_USED) + 0.5) * len(order) / _USED
        order = order[places.astype(np.int64)]
    return [column[order] for column in columns]
