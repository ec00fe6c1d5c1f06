"""The measurements of a streaming server, whoever it is: latency, requests, tokens, CPU."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from statistics import median

import psutil
import uvloop

from benchmarks.common.rounds import turns
from benchmarks.serving.load import one_by_one, together

CLIENTS = 32
MARK = b" tok"
PACED_STEP_S = 0.02
LATENCY = "1 token, one at a time, p50 ms"
REQUESTS = "1-token requests/s at 32 concurrent"
TOKENS = "tokens/s at 32 × 200"
PACED = "CPU µs per token, paced"
Found = dict[str, float]
GOALS = (
    (LATENCY, {"at_most": 2.0}),
    (REQUESTS, {"at_least": 1_200.0}),
    (TOKENS, {"at_least": 100_000.0}),
    (PACED, {"at_most": 80.0}),
)
_WARM = 20


@dataclass(frozen=True, slots=True)
class Running:
    """A server that was started, and all of its processes."""

    port: int
    processes: Sequence[psutil.Process]

    def cpu_s(self) -> float:
        times = [process.cpu_times() for process in self.processes]
        return sum(each.user + each.system for each in times)


class NotStarted(Exception):
    """A contender that cannot be measured here."""


Start = Callable[[str, float], AbstractContextManager[Running]]  # name, seconds of a step


def latency(start: Start, name: str, quick: bool) -> Found:
    """Answers of one token, one at a time."""
    with _warm(start, name, 0.0) as server:
        answers = uvloop.run(one_by_one(server.port, MARK, 300 if quick else 2_000, 1))
    return {LATENCY: median(answer.total_s for answer in answers) * 1e3}


def requests(start: Start, name: str, quick: bool) -> Found:
    """As many answers of one token as there can be."""
    with _warm(start, name, 0.0) as server:
        count, took, cpu = _loaded(server, 20 if quick else 200, 1)
    return {REQUESTS: count / took, "CPU µs per such request": cpu / count * 1e6}


def tokens(start: Start, name: str, quick: bool) -> Found:
    """As many tokens as there can be. The engine waits for nobody."""
    with _warm(start, name, 0.0) as server:
        count, took, cpu = _loaded(server, 2 if quick else 10, 200)
    return {TOKENS: count / took, "CPU µs per such token": cpu / count * 1e6}


def paced(start: Start, name: str, quick: bool) -> Found:
    """Tokens that come every 20 ms, as from an engine."""
    with _warm(start, name, PACED_STEP_S) as server:
        count, _, cpu = _loaded(server, 1, 150)
    return {PACED: cpu / count * 1e6}


MEASURES = (latency, requests, tokens, paced)


def measured(
    start: Start, names: Sequence[str], rounds: int, quick: bool, note: Callable[[str], None]
) -> dict[str, dict[str, list[float]]]:
    """Return what was found, by figure and contender; who begins changes from round to round."""
    found: dict[str, dict[str, list[float]]] = {}
    for measure in MEASURES:
        for _, name in turns(names, rounds):
            try:
                values = measure(start, name, quick)
            except NotStarted as error:
                note(f"{measure.__name__} of {name}: {error}")
                continue
            for figure, value in values.items():
                found.setdefault(figure, {}).setdefault(name, []).append(value)
    return found


@contextmanager
def _warm(start: Start, name: str, step_s: float) -> Iterator[Running]:
    with start(name, step_s) as server:
        uvloop.run(one_by_one(server.port, MARK, _WARM, 4))
        yield server


def _loaded(server: Running, each: int, max_tokens: int) -> tuple[int, float, float]:
    """Return tokens, seconds, and the server's CPU seconds; all answers must be whole."""
    before = server.cpu_s()
    answers, took = uvloop.run(together(server.port, MARK, CLIENTS, each, max_tokens))
    spent = server.cpu_s() - before
    short = [answer for answer in answers if answer.tokens != max_tokens]
    assert not short, f"{len(short)} answers lack tokens: {short[0]}"
    return len(answers) * max_tokens, took, spent
