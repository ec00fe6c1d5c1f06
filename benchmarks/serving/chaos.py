"""Does a client ever lose an answer, whatever dies? Real processes, killed, stopped and drained.

    python benchmarks/serving/chaos.py [--minutes 4] [--quick] [--json FILE] [--seed N]

Prefill and decode workers (SmolLM2, a process each) and two frontends with HTTP. Clients ask for
streamed answers, greedy or drawn with a seed, one after the other. Meanwhile workers are killed
(SIGKILL), stand still for a while (SIGSTOP, SIGCONT) or are drained (SIGTERM), and frontends are
killed; each is started again. Every answer is compared with that of a calm run.

An answer is lost when its stream ends without its end while its frontend lives. A frontend that is
killed breaks its clients' connections: those are counted apart, and the clients ask again.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.report import Goal, Report
from benchmarks.serving.events import Refused, events
from benchmarks.serving.nursery import Nursery, WorkerProcess

MODEL = "smollm2"
MAX_MODEL_LEN = 1024
WORKERS = ("p0", "p1", "d0", "d1", "b0")
QUICK_WORKERS = ("p0", "d0", "b0")
FRONTENDS = ("front-0", "front-1")
ENGINE = {"max_model_len": MAX_MODEL_LEN, "num_kv_blocks": 512, "max_num_batched_tokens": 256}
DRAIN = {"deadline_s": 20.0, "quiet_s": 0.3}
CLIENTS = 12
KINDS = 48  # of requests, asked for again and again
PAUSE_S = (1.0, 4.0)  # between two blows
STILL_S = (0.5, 6.0)
ANSWER_TIMEOUT_S = 120.0
TOPICS = ("a relay race", "the sea", "seven countries", "an old clock", "bread", "a long winter")


@dataclass(slots=True)
class Tally:
    """What clients have seen, and what was done to the processes."""

    sent: int = 0
    completed: int = 0
    different: int = 0
    broken_with_frontend: int = 0  # asked again
    refused: int = 0  # 429 or 503: asked again
    lost: list[str] = field(default_factory=list)
    blows: Counter[str] = field(default_factory=Counter)


class FrontendGone(Exception):
    pass


class Lost(Exception):
    pass


class Stage:
    """All processes; `fleet` is the file from which frontends know the workers."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.names = names
        self.workers: dict[str, WorkerProcess] = {}
        self.fronts: dict[str, WorkerProcess] = {}
        self.counters: Counter[str] = Counter()  # of frontends that were killed
        self._folder = folder
        self._fleet = folder / "fleet.json"
        self._nursery = Nursery()

    async def start(self) -> None:
        self._write()
        await asyncio.gather(*map(self.start_worker, self.names))
        await asyncio.gather(*map(self.start_front, FRONTENDS))

    async def start_worker(self, name: str) -> None:
        self.workers[name] = await self._nursery.make(name, engine=ENGINE, drain=DRAIN)
        self._write()

    async def start_front(self, name: str) -> None:
        files = {"fleet": str(self._fleet), "counters": str(self._counters_of(name))}
        options = files | {"max_model_len": MAX_MODEL_LEN}
        self.fronts[name] = await self._nursery.make(name, **options)

    def count(self, name: str) -> None:
        """Keep what a frontend, which is dead or about to end, has counted."""
        with suppress(FileNotFoundError):
            self.counters.update(json.loads(self._counters_of(name).read_text()))
            self._counters_of(name).unlink()

    def close(self) -> None:
        self._nursery.close()

    def _counters_of(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _write(self) -> None:
        """A worker that has ended stays in it: the fleet notices that by itself."""
        new = self._fleet.with_suffix(".new")
        new.write_text(json.dumps({name: w.address for name, w in self.workers.items()}))
        new.replace(self._fleet)


class Blows:
    """One at a time: what was hit is whole again before the next one."""

    def __init__(self, stage: Stage, tally: Tally, pick: random.Random) -> None:
        self._stage = stage
        self._tally = tally
        self._pick = pick

    async def run(self) -> None:
        kinds = [self._drain, self._kill, self._stand_still, self._kill_front]
        while True:
            for blow in kinds:
                await asyncio.sleep(self._pick.uniform(*PAUSE_S))
                self._tally.blows[blow.__name__.strip("_")] += 1
                await blow()
            self._pick.shuffle(kinds)

    async def _kill(self) -> None:
        worker = self._worker()
        worker.kill()
        await worker.wait()
        await self._stage.start_worker(worker.name)

    async def _stand_still(self) -> None:
        worker = self._worker()
        worker.stop()
        await asyncio.sleep(self._pick.uniform(*STILL_S))
        worker.go_on()

    async def _drain(self) -> None:
        worker = self._worker()
        worker.terminate()
        status = await worker.wait()
        self._tally.blows["drained empty" if status == 0 else "drained, cut off"] += 1
        await self._stage.start_worker(worker.name)

    async def _kill_front(self) -> None:
        name = self._pick.choice(FRONTENDS)
        front = self._stage.fronts[name]
        front.kill()
        await front.wait()
        self._stage.count(name)
        await self._stage.start_front(name)

    def _worker(self) -> WorkerProcess:
        return self._stage.workers[self._pick.choice(self._stage.names)]


class Clients:
    def __init__(self, stage: Stage, tally: Tally, requests: list[dict[str, Any]]) -> None:
        self._stage = stage
        self._tally = tally
        self._requests = requests
        self._calm: dict[int, str] = {}

    async def learn(self) -> None:
        """Ask for everything once, while nothing happens."""
        for kind in range(len(self._requests)):
            self._calm[kind] = await self._whole(FRONTENDS[kind % 2], kind)

    async def run(self, number: int, until: float) -> None:
        pick = random.Random(number)
        while time.monotonic() < until:
            kind = pick.randrange(len(self._requests))
            self._tally.sent += 1
            try:
                text = await self._persist(pick, kind)
            except Lost as error:
                self._tally.lost.append(str(error))
                print(f"lost: {error}", file=sys.stderr)
                continue
            self._tally.completed += 1
            self._tally.different += text != self._calm[kind]

    async def _persist(self, pick: random.Random, kind: int) -> str:
        while True:
            try:
                return await self._whole(pick.choice(FRONTENDS), kind)
            except FrontendGone:
                self._tally.broken_with_frontend += 1
            except Refused as error:
                if error.status not in (429, 503):
                    raise Lost(str(error)) from error
                self._tally.refused += 1
            await asyncio.sleep(0.1)

    async def _whole(self, name: str, kind: int) -> str:
        front, text, reason = self._stage.fronts[name], "", None
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                url = f"{front.address}/v1/completions"
                async for event in events(url, self._requests[kind]):
                    if "error" in event:
                        raise Lost(f"{name}: {event['error']}")
                    text += event["choices"][0]["text"]
                    reason = event["choices"][0]["finish_reason"]
        except (ConnectionError, TimeoutError) as error:
            if front.harmed:
                raise FrontendGone from error
            raise Lost(f"{name}: {error!r} after {len(text)} characters") from error
        if reason not in ("stop", "length"):
            raise Lost(f"{name}: ended with {reason!r} after {len(text)} characters")
        return text


def requests(pick: random.Random) -> list[dict[str, Any]]:
    """Prompts that begin alike in groups, greedy and seeded, short answers and longer ones."""
    made = []
    for number in range(KINDS):
        topic = TOPICS[number % len(TOPICS)]
        prompt = f"This is a story about {topic}. " * pick.randint(1, 8) + f"Chapter {number}:"
        drawn = {"temperature": 0.8, "seed": number} if number % 2 else {"temperature": 0.0}
        length = pick.choice((4, 8, 8, 16, 48))
        body = {"model": MODEL, "prompt": prompt, "max_tokens": length, "stream": True}
        made.append(body | drawn)
    return made


@asynccontextmanager
async def staged(names: tuple[str, ...]) -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder), names)
        try:
            await stage.start()
            yield stage
        finally:
            stage.close()


async def measure(seconds: float, names: tuple[str, ...], seed: int) -> tuple[Tally, Counter[str]]:
    tally, pick = Tally(), random.Random(seed)
    async with staged(names) as stage:
        clients = Clients(stage, tally, requests(pick))
        await clients.learn()
        print("the calm run is over", file=sys.stderr)
        blows = asyncio.create_task(Blows(stage, tally, pick).run())
        until = time.monotonic() + seconds
        await asyncio.gather(*(clients.run(number, until) for number in range(CLIENTS)))
        if blows.done():
            blows.result()
        blows.cancel()
        await asyncio.gather(blows, return_exceptions=True)
        for name in FRONTENDS:
            stage.count(name)
        return tally, stage.counters


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="25 s of it, with fewer workers")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    seconds = 25.0 if arguments.quick else 60.0 * arguments.minutes
    names = QUICK_WORKERS if arguments.quick else WORKERS
    tally, counters = asyncio.run(measure(seconds, names, arguments.seed))
    report = Report("Serving while processes are killed, stopped and drained")
    report.table("what was done", ["", "times"], [[*item] for item in sorted(tally.blows.items())])
    rows = [
        ["requests sent", tally.sent],
        ["completed", tally.completed],
        ["asked again: their frontend was killed", tally.broken_with_frontend],
        ["asked again: refused with 429 or 503", tally.refused],
        ["answers that went on after their worker was lost", counters["moved"]],
        ["answers moved off a worker that drained", counters["drained"]],
        ["prompts handed over", counters["handed_over"]],
        ["hand-overs that failed", counters["handover_failures"]],
    ]
    report.table("what clients and frontends saw", ["", "count"], rows)
    report.goal(Goal("answers lost", len(tally.lost), at_most=0))
    report.goal(Goal("answers that differ from the calm run's", tally.different, at_most=0))
    if not arguments.quick:
        report.goal(Goal("requests sent", tally.sent, at_least=2_000))
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
