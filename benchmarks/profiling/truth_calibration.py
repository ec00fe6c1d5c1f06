"""What a profile of an engine alone cannot know: the stack around it, the other worker beside it.

Each is measured on workers that have nothing else to do, before any load, by requests of its own:

- what a step and a first token take beside what the twin says, on idle workers
- by how much each worker is slower while the other one is busy: they share a machine's memory,
  caches and clock, which the twin's workers do not
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any

from benchmarks.profiling.truth_traffic import Asked, Found, Mix
from benchmarks.serving.disagg_traffic import request, times
from benchmarks.serving.front import Front
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.request import Request

_STEP_TERMS = tuple(each.name for each in fields(Profile))[:5]
_ALONE_GAP_S = 1.5
_COMPANY_PROMPT = 256  # tokens, one behind the other
_COMPANY_STREAMS = 2
_PREFILL, _DECODE = "p0", "d0"


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


async def slowness(front: Front, samples: int) -> Slowness:
    """Measure each worker alone, and while the other one has always something to do."""
    place = Placing(front)
    try:
        prompt_alone = await _first_ms(front, place, samples)
        step_alone = await _step_ms(front, place, samples)
        async with _busy(front, place, _DECODE, 16, 400, _COMPANY_STREAMS):
            prompt_beside = await _first_ms(front, place, samples)
        async with _busy(front, place, _PREFILL, _COMPANY_PROMPT, 1, 1):
            step_beside = await _step_ms(front, place, samples)
    finally:
        place.undo()
    return Slowness(
        prefill=max(1.0, prompt_beside / prompt_alone), decode=max(1.0, step_beside / step_alone)
    )


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


async def _first_ms(front: Front, place: Placing, samples: int) -> float:
    """Return what a prompt takes on the prefill worker."""
    words, found = random.Random(5), []
    for _ in range(samples):
        wanted = place.on(_PREFILL, request(words, _COMPANY_PROMPT, 1))
        moments = await times(front, wanted)
        found.append((moments[1] - moments[0]) * 1e3)
    return median(found)


async def _step_ms(front: Front, place: Placing, samples: int) -> float:
    """Return what a step takes on the decode worker."""
    words, found = random.Random(6), []
    for _ in range(samples):
        wanted = place.on(_DECODE, request(words, 64, 48))
        moments = await times(front, wanted)
        found.append((moments[-1] - moments[1]) * 1e3 / (len(moments) - 2))
    return median(found)


@asynccontextmanager
async def _busy(
    front: Front, place: Placing, worker: str, prompt: int, output: int, streams: int
) -> AsyncIterator[None]:
    """Keep a worker at work meanwhile."""
    words = random.Random(7)

    async def ask() -> None:
        while True:
            await times(front, place.on(worker, request(words, prompt, output)))

    tasks: Sequence[asyncio.Task[None]] = [asyncio.create_task(ask()) for _ in range(streams)]
    await asyncio.sleep(0.5)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
