"""Conversations of many turns: each repeats all that was said, and adds to it."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

from stafette.platform.bench.load import Conversation, Lengths, Level, Turn
from stafette.platform.bench.shapes.drawing import OWN, check_above_zero, check_levels, draw_tokens
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.twin.prompts import Piece

_LEAST_SESSIONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsShape:
    sessions: tuple[int, ...]  # at once
    turns: int = 5
    turn_tokens: int = 100  # that a turn after the first adds; that one has --isl
    think_s: float = 0.0  # mean, from an answer to the next turn

    axis: ClassVar[str] = "sessions at once"

    def __post_init__(self) -> None:
        check_levels("--sessions", self.sessions)
        check_above_zero("--turns", self.turns)
        check_above_zero("--turn-tokens", self.turn_tokens)
        if not 0 <= self.think_s < float("inf"):
            raise InvalidSetting("--think-s", self.think_s, "must be at least 0")

    def levels(self, lengths: Lengths, requests: int | None, seed: int) -> Sequence[Level]:
        found = []
        for limit in self.sessions:
            count = self._count(limit, requests)
            name = f"s{limit}"
            found.append(
                Level(
                    name=name,
                    load=limit,
                    limit=limit,
                    num_requests=count * self.turns,
                    conversations=partial(self._sessions, lengths, count, f"{seed} {name}"),
                )
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "sessions"} | asdict(self)

    def _count(self, limit: int, requests: int | None) -> int:
        if requests is None:
            return max(_LEAST_SESSIONS, 2 * limit)
        if requests < limit * self.turns:
            remedy = f"is fewer than {limit} sessions of {self.turns} turns have"
            raise InvalidSetting("--requests", requests, remedy)
        return requests // self.turns

    def _sessions(self, lengths: Lengths, count: int, seed: str) -> Iterator[Conversation]:
        rng = random.Random(seed)
        added = Lengths(isl=self.turn_tokens, std=min(lengths.std, self.turn_tokens - 1), osl=1)
        for number in range(count):
            turns = []
            for turn in range(self.turns):
                tokens = draw_tokens(added if turn else lengths, rng)
                think = rng.expovariate(1 / self.think_s) if self.think_s and turn else 0.0
                pieces = [Piece(OWN + number * self.turns + turn, tokens)]
                turns.append(Turn(pieces=pieces, output_tokens=lengths.osl, pause_s=think))
            yield Conversation(name=f"s{number}", turns=turns)
