"""How a contender answers: one JSON line in (a case and a seed), one out (seconds and tokens).

Standard library only: this runs in every peer's own environment.
"""

import json
import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

TOKEN_IDS = range(1_000, 40_000)  # ordinary words in SmolLM2's vocabulary


@dataclass(frozen=True, slots=True)
class Case:
    """`sequences` prompts at once, each of random tokens, each answered to its full length."""

    sequences: int
    prompt_tokens: int
    output_tokens: int
    seed: int = 0

    def prompts(self) -> list[list[int]]:
        """Return the same prompts for the same seed, in every process."""
        words = random.Random(self.seed)
        return [words.choices(TOKEN_IDS, k=self.prompt_tokens) for _ in range(self.sequences)]

    @property
    def total_tokens(self) -> int:
        return self.sequences * (self.prompt_tokens + self.output_tokens)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run gave. `ttft_s` is None where the engine does not tell."""

    seconds: float
    output_tokens: int
    ttft_s: float | None = None
    start_s: float | None = None  # to the first token of a process of its own, when that was run


def own_stdout() -> TextIO:
    """Return the way back to the parent; whatever else prints to stdout goes to stderr."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return channel


def serve(run: Callable[[Case], Answer], channel: TextIO) -> None:
    """Answer questions until the parent closes its end; a failed run is answered with its error."""
    for line in sys.stdin:
        channel.write(json.dumps(_reply(run, json.loads(line))) + "\n")


def _reply(run: Callable[[Case], Answer], question: Mapping[str, Any]) -> dict[str, Any]:
    case = Case(**question)
    try:
        answer = run(case)
    except Exception as error:  # the edge of this process: the parent is told
        return {"error": f"{type(error).__name__}: {error}"}
    wanted = case.sequences * case.output_tokens
    if answer.output_tokens != wanted:
        return {"error": f"{answer.output_tokens} output tokens instead of {wanted}"}
    return {"seconds": answer.seconds, "ttft_s": answer.ttft_s, "start_s": answer.start_s}
