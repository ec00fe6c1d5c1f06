"""The same requests for real workers and for the twin: when each comes, and how long it is."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.serving.disagg_traffic import request, times
from benchmarks.serving.front import Front
from stafette.platform.twin.arrivals import Arrival
from stafette.platform.twin.prompts import Piece, Prompt, prompt_of
from stafette.platform.twin.tally import percentile

_SETTLE_S = 0.2  # before the first one comes


@dataclass(frozen=True, slots=True)
class Asked:
    at_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Lengths are evenly spread between their bounds."""

    prompts: tuple[int, int]
    outputs: tuple[int, int]

    def draw(self, rate: float, count: int, seed: int) -> list[Asked]:
        """Return requests that come at random; every level has the same lengths."""
        lengths, gaps = random.Random(seed), random.Random(seed + 1)
        at_s, drawn = _SETTLE_S, []
        for _ in range(count):
            drawn.append(
                Asked(at_s, lengths.randint(*self.prompts), lengths.randint(*self.outputs))
            )
            at_s += gaps.expovariate(rate)
        return drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Of one run, real or not. ITL is each request's mean."""

    tokens_s: float
    ttft_ms: Sequence[float]
    itl_ms: Sequence[float]
    handed_over: int

    def figures(self) -> dict[str, float]:
        return {
            "output tokens/s": self.tokens_s,
            "TTFT p50 ms": percentile(sorted(self.ttft_ms), 50),
            "TTFT p90 ms": percentile(sorted(self.ttft_ms), 90),
            "ITL p50 ms": percentile(sorted(self.itl_ms), 50),
            "ITL p90 ms": percentile(sorted(self.itl_ms), 90),
        }


@dataclass(frozen=True, slots=True)
class Replayed:
    """A workload of the twin."""

    asked: Sequence[Asked]

    @property
    def duration_s(self) -> float:
        return self.asked[-1].at_s

    def arrivals(self) -> Iterator[Arrival]:
        for number, each in enumerate(self.asked):
            pieces = (Piece(number, each.prompt_tokens),)  # nobody has asked that before
            yield Arrival(
                at_s=each.at_s,
                make_prompt=_maker(pieces),
                output_tokens=each.output_tokens,
            )


async def ask_for_real(front: Front, asked: Sequence[Asked], seed: int) -> Found:
    """Send each request at its time, whatever became of those before."""
    words, before = random.Random(seed), front.dispatcher.counters.handed_over
    wanted = [request(words, each.prompt_tokens, each.output_tokens) for each in asked]
    began = time.perf_counter()

    async def one(at_s: float, number: int) -> list[float]:
        await asyncio.sleep(began + at_s - time.perf_counter())
        return await times(front, wanted[number])

    tasks = [asyncio.create_task(one(each.at_s, n)) for n, each in enumerate(asked)]
    came = [await task for task in tasks]
    tokens = sum(len(moments) - 1 for moments in came)
    took = max(moments[-1] for moments in came) - began - asked[0].at_s
    return Found(
        tokens_s=tokens / took,
        ttft_ms=[(moments[1] - moments[0]) * 1e3 for moments in came],
        itl_ms=[
            (moments[-1] - moments[1]) * 1e3 / (len(moments) - 2)
            for moments in came
            if len(moments) > 2
        ],
        handed_over=front.dispatcher.counters.handed_over - before,
    )


def _maker(pieces: Sequence[Piece]) -> Callable[[], Prompt]:
    return lambda: prompt_of(pieces)
