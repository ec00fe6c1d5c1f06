"""What does a client see when the worker that answers it is drained?

    python benchmarks/serving/drain.py [--quick] [--json FILE] [--rounds N] [--streams N]

Two real workers (SmolLM2, a process each) and a frontend's dispatcher. All streams run on the one
worker when it is drained; the other one has nothing in its cache, and gets all of them. The gap is
the longest time between two tokens from the drain on, of the streams that were moved before their
end. `kv` moves answers with their KV,
`recompute` lets the new worker compute prompt and answer so far again. Both take turns, on the same
streams. Tokens are compared with those of the same streams left alone.
"""

import argparse
import asyncio
import math
import random
import sys
import time
from dataclasses import dataclass, field

from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import turns
from benchmarks.serving.front import Front, until
from benchmarks.serving.nursery import Nursery
from stafette.platform.frontend.generator import Hints
from stafette.platform.serving.config import DispatchConfig
from stafette.platform.serving.course import Leg
from stafette.platform.serving.fleet import WorkerFleet
from stafette.platform.serving.mover import Mover
from stafette.platform.serving.placer import Placer
from stafette.router.router import Placement
from stafette.workers import SamplingParams
from stafette.workers.request import Request

KV, RECOMPUTE = "kv", "recompute"
WORKERS = ("d0", "d1")
OPTIONS = {
    "engine": {"max_model_len": 2048, "num_kv_blocks": 2048, "max_num_seqs": 32},
    "drain": {"quiet_s": 3600.0, "deadline_s": 3600.0},  # it is drained again and again
}
PROMPT_TOKENS = (200, 1_200)
MAX_TOKENS = 72
DRAIN_AT = 12  # tokens that every stream has by then
GAP_P99_MS = 200.0


class Watching(Mover):
    """Knows which requests were moved."""

    def __init__(self, config: DispatchConfig, fleet: WorkerFleet, placer: Placer) -> None:
        super().__init__(config, fleet, placer)
        self.moved: set[str] = set()

    def enter(self, leg: Leg) -> None:
        super().enter(leg)
        if leg.before is not None:
            self.moved.add(leg.course.request.request_id)


class Recomputing(Watching):
    """Takes answers off a worker without their KV."""

    async def _make_ready(self, leg: Leg, placement: Placement) -> Placement:
        return placement._replace(prefill=None, source=None)


@dataclass(slots=True)
class Stream:
    """A client: its tokens, and when they came."""

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def longest_gap_ms(self, since: float) -> float:
        """Return the longest wait for a token that came after a moment."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return max(after - before for before, after in pairs if after > since) * 1e3


@dataclass(slots=True)
class Found:
    gaps_ms: list[float] = field(default_factory=list)
    drain_s: list[float] = field(default_factory=list)
    num_streams: int = 0
    wrong: int = 0  # of these
    failed: int = 0  # moves


def requests(count: int) -> list[Request]:
    """Return prompts of all lengths; every other one is drawn with a seed."""
    pick, made = random.Random(5), []
    for number in range(count):
        length = pick.randint(*PROMPT_TOKENS)
        seeded = {"temperature": 0.9, "seed": number} if number % 2 else {"temperature": 0.0}
        params = SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True, **seeded)  # type: ignore[arg-type]
        prompt = [pick.randrange(100, 40_000) for _ in range(length)]
        made.append(Request(request_id=f"s{number}", prompt_token_ids=prompt, params=params))
    return made


class Bench:
    def __init__(self, front: Front, count: int) -> None:
        self._front = front
        self._requests = requests(count)
        self._calm: list[list[int]] = []
        dispatcher, fleet = front.dispatcher, front.fleet
        made = {KV: Watching, RECOMPUTE: Recomputing}
        self._movers = {
            way: mover(dispatcher.config, fleet, dispatcher.placer) for way, mover in made.items()
        }

    async def calm(self) -> list[float]:
        """Learn what the streams are when nothing happens; return the gaps between tokens."""
        streams = await self._run([Stream() for _ in self._requests])
        self._calm = [stream.tokens for stream in streams]
        return [s.longest_gap_ms(s.times[DRAIN_AT]) for s in streams]

    async def drain(self, way: str, found: Found) -> None:
        """Drain whoever is not draining, with all streams on it."""
        front, mover = self._front, self._movers[way]
        front.dispatcher.mover, front.fleet.on_drain = mover, mover.on_drain
        source, target = self._turn_round()
        await self._start_anew(source, target)
        mover.moved.clear()
        failed = mover.counters.failed
        streams = [Stream() for _ in self._requests]
        running = asyncio.create_task(self._run(streams))
        await until(lambda: all(len(s.tokens) >= DRAIN_AT for s in streams))
        await front.ask(target, "drain", False)
        await until(lambda: target not in front.fleet.draining)
        began = time.monotonic()
        await front.ask(source, "drain")
        await until(lambda: not front.fleet.client(source).num_requests)
        found.drain_s.append(time.monotonic() - began)
        await running
        for request, stream in zip(self._requests, streams, strict=True):
            if request.request_id in mover.moved:
                found.gaps_ms.append(stream.longest_gap_ms(began))
            found.num_streams += 1
        tokens = [stream.tokens for stream in streams]
        found.wrong += sum(a != b for a, b in zip(tokens, self._calm, strict=True))
        found.failed += mover.counters.failed - failed

    def _turn_round(self) -> tuple[str, str]:
        draining = self._front.fleet.draining
        return WORKERS if WORKERS[1] in draining else (WORKERS[1], WORKERS[0])

    async def _start_anew(self, source: str, target: str) -> None:
        """Leave nothing in either cache, and place everything on the one."""
        for name in (source, target):
            await self._front.ask(name, "reset_prefix_cache")
        await self._front.ask(target, "drain")
        await until(lambda: self._front.fleet.draining == {target})

    async def _run(self, streams: list[Stream]) -> list[Stream]:
        await asyncio.gather(*map(self._client, self._requests, streams))
        return streams

    async def _client(self, request: Request, stream: Stream) -> None:
        async for deltas in self._front.dispatcher.stream(request, Hints()):
            for delta in deltas:
                stream.tokens += delta.token_ids
                stream.times += [time.monotonic()] * bool(delta.token_ids)


async def measure(rounds: int, count: int) -> tuple[dict[str, Found], list[float]]:
    nursery, front = Nursery(), Front("drain")
    try:
        made = await asyncio.gather(*(nursery.make(name, **OPTIONS) for name in WORKERS))
        await front.follow({worker.name: worker.address for worker in made})
        bench, found = Bench(front, count), {KV: Found(), RECOMPUTE: Found()}
        await front.ask(WORKERS[1], "drain")
        calm = await bench.calm()
        for number, way in turns((KV, RECOMPUTE), rounds):
            await bench.drain(way, found[way])
            print(
                f"round {number + 1}, {way}: p50 {share(found[way].gaps_ms, 0.5):.0f} ms",
                file=sys.stderr,
            )
        return found, calm
    finally:
        await front.close()
        nursery.close()


def share(values: list[float], part: float) -> float:
    """Return the value below which that part of them lies."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else math.nan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short rounds")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--streams", type=int, default=8)
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else arguments.rounds
    found, calm = asyncio.run(measure(rounds, arguments.streams))
    report = Report("Draining a worker with streams on it")
    rows = [
        [way, f.num_streams, len(f.gaps_ms), share(f.gaps_ms, 0.5), share(f.gaps_ms, 0.99)]
        + [share(f.drain_s, 0.5), f.failed, f.wrong]
        for way, f in found.items()
    ]
    gaps = ["gap p50 ms", "p99 ms"]
    headers = ["", "streams", "moved", *gaps, "drained in s", "tried again", "wrong"]
    report.table("streams on a worker that is drained", headers, rows)
    report.figure("longest gap of the same streams left alone, p50 ms", share(calm, 0.5))
    report.goal(Goal("gap at the move, p99 ms", rows[0][4], at_most=GAP_P99_MS))  # type: ignore[arg-type]
    report.goal(
        Goal(
            "streams with a token lost or changed", sum(f.wrong for f in found.values()), at_most=0
        )
    )
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
