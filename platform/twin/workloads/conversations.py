"""Requests that follow from answers: sessions of many turns, and agents that call again and again.

What a conversation does depends on the seed and its number only, not on when it is answered.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from stafette.platform.twin.arrivals import Arrival
from stafette.platform.twin.prompts import Piece, Prompt, prompt_of
from stafette.platform.twin.workloads.config import WorkloadConfig
from stafette.platform.twin.workloads.open_loop import draw, draw_prompt
from stafette.platform.twin.workloads.rates import Stairs, times

_OWN = 1 << 24
_TURNS = 1 << 12  # pieces of one conversation
_INSTRUCTIONS = Piece(0, 0)
_MOST_TOKENS = 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manner:
    """How the turns after the first come."""

    pause_s: float  # mean
    added_tokens: int  # mean
    output_tokens: int  # mean
    spread: float
    most_prompt: int
    most_output: int


class _Conversation:
    """Called with each answer; returns the next turn."""

    def __init__(self, name: str, number: int, turns: int, rng: random.Random, manner: _Manner):
        self._name = name
        self._number = number
        self._left = turns
        self._rng = rng
        self._manner = manner

    def first(self, at_s: float, pieces: list[Piece]) -> Arrival:
        return self._turn(at_s, lambda: prompt_of(pieces))

    def __call__(self, at_s: float, prompt: Prompt, answer: list[int]) -> list[Arrival]:
        manner, rng = self._manner, self._rng
        added = draw(manner.added_tokens, manner.spread, _MOST_TOKENS, rng)
        pause_s = rng.expovariate(1 / manner.pause_s) if manner.pause_s else 0.0
        if self._left <= 0 or len(prompt) + len(answer) + added > manner.most_prompt:
            return []
        piece = Piece(self._number + self._left, added)
        return [self._turn(at_s + pause_s, partial(prompt.then, answer, [piece]))]

    def _turn(self, at_s: float, make: "partial[Prompt] | object") -> Arrival:
        self._left -= 1
        manner = self._manner
        output = draw(manner.output_tokens, manner.spread, manner.most_output, self._rng)
        return Arrival(
            at_s=at_s,
            make_prompt=make,  # type: ignore[arg-type]
            output_tokens=output,
            session=self._name,
            follow=self,
        )


class Sessions:
    def __init__(self, config: WorkloadConfig) -> None:
        assert config.sessions is not None, "it is a workload of sessions"
        self._config = config
        self._sessions = config.sessions

    @property
    def duration_s(self) -> float:
        return self._config.duration_s

    def arrivals(self) -> Iterator[Arrival]:
        config, sessions, lengths = self._config, self._sessions, self._config.lengths
        manner = _Manner(
            pause_s=sessions.think_s,
            added_tokens=sessions.turn_tokens,
            output_tokens=lengths.output_tokens,
            spread=lengths.output_spread,
            most_prompt=lengths.max_prompt_tokens,
            most_output=lengths.max_output_tokens,
        )
        for number, at_s in enumerate(_times(config, sessions.sessions_s)):
            rng = random.Random(f"{config.seed} session {number}")
            own = _OWN + number * _TURNS
            pieces = draw_prompt(lengths, own, rng)
            turns = _count(sessions.turns, rng)
            yield _Conversation(f"s{number}", own, turns, rng, manner).first(at_s, pieces)


class Agents:
    def __init__(self, config: WorkloadConfig) -> None:
        assert config.agents is not None, "it is a workload of agents"
        self._config = config
        self._agents = config.agents

    @property
    def duration_s(self) -> float:
        return self._config.duration_s

    def arrivals(self) -> Iterator[Arrival]:
        config, agents, lengths = self._config, self._agents, self._config.lengths
        manner = _Manner(
            pause_s=agents.tool_s,
            added_tokens=agents.result_tokens,
            output_tokens=agents.output_tokens,
            spread=lengths.output_spread,
            most_prompt=lengths.max_prompt_tokens,
            most_output=lengths.max_output_tokens,
        )
        instructions = _INSTRUCTIONS._replace(tokens=agents.shared_tokens)
        for number, at_s in enumerate(_times(config, agents.tasks_s)):
            task_rng = random.Random(f"{config.seed} task {number}")
            base = _OWN + number * agents.fan_out * _TURNS
            tokens = draw(agents.task_tokens, lengths.prompt_spread, _MOST_TOKENS, task_rng)
            task = Piece(base, tokens)
            for row in range(agents.fan_out):
                rng = random.Random(f"{config.seed} task {number} row {row}")
                own, name = base + row * _TURNS, f"t{number}-{row}"
                talk = _Conversation(name, own, _count(agents.calls, rng), rng, manner)
                yield talk.first(at_s, [instructions, task])


def _times(config: WorkloadConfig, rate: float) -> Iterator[float]:
    rng = random.Random(f"{config.seed} times")
    return times(Stairs([(0.0, rate)]), rate, config.duration_s, rng)


def _count(mean: float, rng: random.Random) -> int:
    """Return a geometric number, at least 1, of that mean."""
    if mean <= 1:
        return 1
    drawn = math.log(1.0 - rng.random()) / math.log(1 - 1 / mean)
    return min(int(drawn) + 1, _TURNS - 1)
