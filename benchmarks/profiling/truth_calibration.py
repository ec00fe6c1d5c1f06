"""What a profile of an engine alone cannot know: the stack around it, the other worker beside it.

Each is measured before any level of load, by requests of its own:

- what a step and a first token take beside what the twin says, on idle workers
- by how much each worker is slower while the other one is busy: they share a machine's memory,
  caches and clock, which the twin's workers do not. Both serve a load between the levels that are
  compared later, and the two factors with which the twin comes nearest to it are taken
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import log
from statistics import median
from typing import Any

from benchmarks.profiling.truth_traffic import Asked, Found, Mix
from benchmarks.serving.front import Front
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.request import Request

_STEP_TERMS = tuple(each.name for each in fields(Profile))[:5]
_ALONE_GAP_S = 1.5
TOGETHER = 0.5  # of capacity, at which both are measured side by side
_FACTORS = (0.7, 0.85, 1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0)
_ROUNDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowness:
    """By which factor a worker is slower while the other one is busy."""

    prefill: float
    decode: float

    def speeds(self, speed: Profile, prefill_busy: float, decode_busy: float) -> list[Profile]:
        """Return the prefill worker's and the decode worker's, beside one so often busy."""
        return [
            slower(speed, 1 + (self.prefill - 1) * decode_busy),
            slower(speed, 1 + (self.decode - 1) * prefill_busy),
        ]


def slower(speed: Profile, factor: float) -> Profile:
    terms: dict[str, Any] = {name: getattr(speed, name) * factor for name in _STEP_TERMS}
    return replace(speed, **terms)


def alone(mix: Mix, count: int, seed: int) -> list[Asked]:
    """Return requests that come one after the other."""
    drawn = mix.draw(1.0, count, seed)
    return [
        Asked((n + 1) * _ALONE_GAP_S, each.prompt_tokens, each.output_tokens)
        for n, each in enumerate(drawn)
    ]


def step_beside_ms(real: Found, twin: Found) -> float:
    """Return what a step takes more, or less: an engine that never rests is no worker's."""
    return median(real.itl_ms) - median(twin.itl_ms)


def first_beside_ms(real: Found, twin: Found) -> float:
    pairs = zip(real.ttft_ms, twin.ttft_ms, strict=True)
    return max(0.0, median(of_real - of_twin for of_real, of_twin in pairs))


def fitted(real: Found, foretell: Callable[[Slowness], Found]) -> Slowness:
    """Return the slowness with which the twin comes nearest to a load that was really served."""
    best = Slowness(prefill=1.0, decode=1.0)
    least = _apart(real, foretell(best))
    for name in ("prefill", "decode") * _ROUNDS:
        for factor in _FACTORS:
            tried = replace(best, **{name: factor})
            apart = _apart(real, foretell(tried))
            if apart < least:
                best, least = tried, apart
    return best


def _apart(real: Found, twin: Found) -> float:
    """Return how far off all figures are; twice as much is as bad as half as much."""
    told = twin.figures()
    return sum(log(told[name] / value) ** 2 for name, value in real.figures().items())


class Placing:
    """Sends requests to a worker of choice, whatever it costs."""

    def __init__(self, front: Front) -> None:
        self._router = front.router
        self._usual = front.router.place
        self._workers: dict[str, str] = {}  # by request

        def placed(asked: Any) -> Any:
            worker = self._workers.pop(asked.request_id.partition("-")[0])
            return self._usual(asked)._replace(prefill=None, decode=worker, source=None)

        front.router.place = placed  # type: ignore[method-assign,assignment]

    def on(self, worker: str, wanted: Request) -> Request:
        self._workers[wanted.request_id] = worker
        return wanted

    def undo(self) -> None:
        self._router.place = self._usual  # type: ignore[method-assign]
