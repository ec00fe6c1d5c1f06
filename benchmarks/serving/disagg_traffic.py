"""Streams that decode while long prompts keep coming, and what their readers see."""

import asyncio
import itertools
import random
import time
from dataclasses import dataclass, field

from benchmarks.serving.front import Front
from stafette.platform.frontend.generator import Hints
from stafette.workers import SamplingParams
from stafette.workers.request import Request

_FIRST_WORD, _LAST_WORD = 100, 40_000
_names = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    streams: int
    stream_prompt: int
    stream_tokens: int
    long_prompt: int
    long_every_s: float  # one begins, whatever became of those before


@dataclass(slots=True)
class Seen:
    gaps_ms: list[float] = field(default_factory=list)  # between two tokens of a stream
    first_ms: list[float] = field(default_factory=list)  # until a long prompt's first token
    handed_over: int = 0  # prompts


def request(pick: random.Random, num_prompt: int, max_tokens: int) -> Request:
    """Return a prompt that nobody has asked before."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    prompt = [pick.randrange(_FIRST_WORD, _LAST_WORD) for _ in range(num_prompt)]
    return Request(request_id=f"r{next(_names)}", prompt_token_ids=prompt, params=params)


async def times(front: Front, wanted: Request) -> list[float]:
    """Return when its tokens came; the first entry is when it was asked."""
    came = [time.perf_counter()]
    async for deltas in front.dispatcher.stream(wanted, Hints()):
        count = sum(len(delta.token_ids) for delta in deltas)
        came += [time.perf_counter()] * count
    return came


async def run(front: Front, shape: Shape, pick: random.Random) -> Seen:
    """Begin all streams, and send long prompts until the last of them has ended."""
    seen, before = Seen(), front.dispatcher.counters.handed_over
    wanted = [request(pick, shape.stream_prompt, shape.stream_tokens) for _ in range(shape.streams)]
    streams = [asyncio.create_task(times(front, each)) for each in wanted]
    longs: list[asyncio.Task[list[float]]] = []
    while not all(stream.done() for stream in streams):
        longs.append(asyncio.create_task(times(front, request(pick, shape.long_prompt, 2))))
        await asyncio.wait(streams, timeout=shape.long_every_s)
    for stream in streams:
        came = (await stream)[1:]
        seen.gaps_ms += [(b - a) * 1e3 for a, b in itertools.pairwise(came)]
    for long in longs:
        asked, first, *_ = await long
        seen.first_ms.append((first - asked) * 1e3)
    seen.handed_over = front.dispatcher.counters.handed_over - before
    return seen
