"""What does it cost to part prefill from decode, and what is it good for?

    python benchmarks/serving/disagg.py [--quick] [--json FILE] [--only first,mock,real]

first   Real workers (SmolLM2, a process each), nothing else running: time to the first token of
        prompts of 2,000 tokens that nobody knows, computed where they are answered, or handed over.
mock    Two mock workers that both do both, or one of each kind: gaps between the tokens of streams
        while long prompts keep coming. Steps take five times as long as an 8-billion model's on
        one data-centre GPU, and take in at most 2,048 tokens of prompts.
real    The same with real workers of one thread each. No goal: workers, frontend and everything
        else on the machine share its cores.

Ways take turns in every round.
"""

import argparse
import asyncio
import json
import os
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import middle, ratio, turns
from benchmarks.serving.disagg_traffic import Seen, Shape, request, run, times
from benchmarks.serving.front import Front
from benchmarks.serving.nursery import Nursery
from benchmarks.serving.overhead import script

TOGETHER, APART = "aggregated", "disaggregated"
WAYS = (TOGETHER, APART)
WORKERS = {TOGETHER: ("b0", "b1"), APART: ("p0", "d0")}
ENGINE = {
    "max_model_len": 4096,
    "num_kv_blocks": 1024,
    "max_num_batched_tokens": 512,
    "num_threads": 1,
}
PROMPT_TOKENS = 2_000
MOST_ADDED, MOST_ADDED_MS = 0.15, 10.0
LEAST_BETTER = 3.0
MOCK = Shape(streams=8, stream_prompt=128, stream_tokens=150, long_prompt=8_000, long_every_s=1.5)
REAL = Shape(streams=4, stream_prompt=64, stream_tokens=64, long_prompt=1_000, long_every_s=4.0)
QUICK_REAL = Shape(streams=2, stream_prompt=64, stream_tokens=24, long_prompt=500, long_every_s=4.0)
Found = dict[str, list[Seen]]


async def first_tokens(rounds: int, report: Report) -> None:
    """Compare the time to the first token, one prompt at a time."""
    nursery, front, pick = Nursery(), Front("first"), random.Random(1)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        names = ("b0", "p0", "d0")
        made = await asyncio.gather(*(nursery.make(name, engine=ENGINE) for name in names))
        await front.follow({worker.name: worker.address for worker in made})
        for number, way in turns(WAYS, rounds + 1):
            _keep(front, way)
            asked, came, *_ = await times(front, request(pick, PROMPT_TOKENS, 2))
            print(f"round {number}, {way}: {came - asked:.3f} s", file=sys.stderr)
            if number:  # the first round warms up
                found[way].append((came - asked) * 1e3)
    finally:
        await front.close()
        nursery.close()
    together, apart = (middle(found[way]) for way in WAYS)
    report.table(
        f"time to first token, ms, prompts of {PROMPT_TOKENS:,} tokens on idle workers",
        ["", "median", "least", "most", "prompts"],
        [[way, middle(ms), min(ms), max(ms), len(ms)] for way, ms in found.items()],
    )
    bound = (together or 0.0) * (1 + MOST_ADDED) + MOST_ADDED_MS
    report.goal(Goal("time to first token, disaggregated, ms", apart, at_most=bound))


def _keep(front: Front, way: str) -> None:
    """Place everything that way, whatever it costs."""
    place = type(front.router).place.__get__(front.router)
    prefill, decode = (None, "b0") if way == TOGETHER else ("p0", "d0")

    def kept(asked: Any) -> Any:
        return place(asked)._replace(prefill=prefill, decode=decode, source=None)

    front.router.place = kept  # type: ignore[method-assign,assignment]


async def mock_gaps(rounds: int, report: Report) -> None:
    async def once(way: str, pick: random.Random) -> Seen:
        with script("disagg_mocks.py", *WORKERS[way]) as (said, _):
            return await _served(json.loads(said), MOCK, pick)

    found = await _take_turns(once, rounds)
    _tell("mock workers", found, report)
    better = ratio(*(_p99(found[way]) for way in WAYS))
    report.goal(Goal("gap p99, aggregated / disaggregated, mock", better, at_least=LEAST_BETTER))


async def real_gaps(rounds: int, report: Report, shape: Shape) -> None:
    nursery = Nursery()
    try:
        names = [name for way in WAYS for name in WORKERS[way]]
        made = await asyncio.gather(*(nursery.make(name, engine=ENGINE) for name in names))
        addresses = {worker.name: worker.address for worker in made}

        async def once(way: str, pick: random.Random) -> Seen:
            return await _served({name: addresses[name] for name in WORKERS[way]}, shape, pick)

        found = await _take_turns(once, rounds)
    finally:
        nursery.close()
    _tell("real workers", found, report)
    report.figure(
        "gap p99, aggregated / disaggregated, real", ratio(*(_p99(found[w]) for w in WAYS))
    )
    report.note(
        f"real workers: 2 of them on {os.cpu_count()} cores, at load {os.getloadavg()[0]:.1f}"
    )


async def _served(addresses: dict[str, str], shape: Shape, pick: random.Random) -> Seen:
    front = Front("disagg")
    try:
        await front.follow(addresses)
        return await run(front, shape, pick)
    finally:
        await front.close()


async def _take_turns(once: Callable[[str, random.Random], Awaitable[Seen]], rounds: int) -> Found:
    found: Found = {way: [] for way in WAYS}
    for number, way in turns(WAYS, rounds):
        found[way].append(await once(way, random.Random(number)))
        print(f"round {number + 1}, {way}", file=sys.stderr)
    return found


def _tell(who: str, found: Found, report: Report) -> None:
    rows = []
    for way, rounds in found.items():
        gaps = [share(seen.gaps_ms, part) for part in (0.5, 0.99, 1.0) for seen in rounds]
        count = len(rounds)
        thirds = [middle(gaps[i * count : (i + 1) * count]) for i in range(3)]
        firsts = [ms for seen in rounds for ms in seen.first_ms]
        rows.append([way, *thirds, middle(firsts), sum(seen.handed_over for seen in rounds)])
    headers = ["", "gap p50 ms", "p99 ms", "most ms", "long prompts' first token p50 ms"]
    report.table(f"streams beside long prompts, {who}", [*headers, "handed over"], rows)


def _p99(rounds: list[Seen]) -> float | None:
    return middle([share(seen.gaps_ms, 0.99) for seen in rounds])


def share(values: list[float], part: float) -> float:
    """Return the value below which that part of them lies."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="first,mock,real")
    arguments = parser.parse_args()
    rounds, parts = (1 if arguments.quick else arguments.rounds), arguments.only.split(",")
    report = Report("Prefill and decode apart")
    if "first" in parts:
        asyncio.run(first_tokens(rounds, report))
    if "mock" in parts:
        asyncio.run(mock_gaps(rounds, report))
    if "real" in parts:
        asyncio.run(real_gaps(rounds, report, QUICK_REAL if arguments.quick else REAL))
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
