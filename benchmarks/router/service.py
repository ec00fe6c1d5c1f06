"""The router over a socket: what HTTP and msgpack add to a placement, beside Dynamo's in process.

    python benchmarks/router/service.py [--quick] [--json FILE]

The service is a process of its own, asked by its own client over keep-alive connections: 8 workers
that hold a million blocks' worth of prompts, told by pushed events. Every prompt must go to the
worker that holds it. Beside it, in turns, stafette's library and Dynamo 1.6.1's SelectionService do
the same in process (see micro.py; Dynamo is installed by the first full run). Exit status 1 when a
goal is missed.
"""

import argparse
import asyncio
import gc
import os
import random
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import ratio
from benchmarks.engine.peers import DEFAULT_FOLDER
from benchmarks.router.lineup import DYNAMO, OURS, Field
from stafette.kvtransfer.blocks import ROOT, BlockHasher
from stafette.router.service.client import RouterClient

TITLE = "The router over a socket"
WORKERS, TOKENS, BLOCK_SIZE = 8, 1_024, 16
ENTRIES, QUICK_ENTRIES = 1_000_000, 50_000
COUNT, QUICK_COUNT = 3_000, 500  # requests of one measurement
ROUNDS, QUICK_ROUNDS = 3, 1
CONNECTIONS = 32
_VOCABULARY = 128_000
_SRC = Path(__file__).resolve().parents[2] / "src"

Prompt = tuple[Sequence[int], str]  # and the worker that holds it


class WrongAnswer(Exception):
    """A service that is fast because it is wrong is not measured."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=TITLE)
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer entries, one round, installs nothing")
    add("--rounds", type=int)
    add("--peers-dir", type=Path, default=DEFAULT_FOLDER)
    add("--json", metavar="FILE")
    return parser.parse_args()


@contextmanager
def service(key: str) -> Iterator[str]:
    """Run the service; give its URL."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "stafette", "router", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(_SRC), "STAFETTE_ROUTER_KEY": key},
    )
    assert process.stdout is not None
    try:
        found = re.search(r"ready at (\S+)", process.stdout.readline())
        assert found is not None, "the service did not start"
        yield found[1]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


async def populate(client: RouterClient, hasher: BlockHasher, entries: int) -> list[Prompt]:
    """Tell of prompts with a common first half; return them, each with its worker."""
    rng = random.Random(11)
    common = [rng.randrange(_VOCABULARY) for _ in range(TOKENS // 2)]
    first = hasher.hash_blocks(common)
    for worker in map(str, range(WORKERS)):
        options = {"fingerprint": hasher.fingerprint, "pushes_events": True}
        await client.register(worker, BLOCK_SIZE, **options, total_blocks=1_000_000)
        await _push(client, worker, 1, [_stored(ROOT, first)])
    prompts: list[Prompt] = []
    events: dict[str, list[list[object]]] = {str(worker): [] for worker in range(WORKERS)}
    for number in range(entries * BLOCK_SIZE // TOKENS):
        own = [rng.randrange(_VOCABULARY) for _ in range(TOKENS // 2)]
        worker = str(number % WORKERS)
        events[worker].append(_stored(first[-1], hasher.hash_blocks(own, first[-1])))
        prompts.append((common + own, worker))
    for worker, told in events.items():
        for place in range(0, len(told), 1_000):
            await _push(client, worker, 2 + place // 1_000, told[place : place + 1_000])
    return prompts


async def latency(client: RouterClient, asked: Sequence[Prompt]) -> dict[str, float]:
    """Return microseconds of a `select` that books nothing, one after the other."""
    times = []
    for number, (tokens, worker) in enumerate(asked):
        began = time.perf_counter()
        selected = await client.select(f"s{number}", tokens, reserve=False)
        times.append(time.perf_counter() - began)
        if selected.decode != worker:
            raise WrongAnswer(f"{selected.decode} was chosen, {worker} holds the prompt")
    times.sort()
    return {"p50": times[len(times) // 2] * 1e6, "p99": times[len(times) * 99 // 100] * 1e6}


async def throughput(url: str, asked: Sequence[Prompt], connections: int) -> dict[str, float]:
    """Return pairs of `select` and `free` a second, and microseconds of a pair."""
    left = iter(enumerate(asked))
    times: list[float] = []

    async def work(client: RouterClient) -> None:
        for number, (tokens, _) in left:
            began = time.perf_counter()
            await client.select(f"{connections}-{number}", tokens)
            await client.free(f"{connections}-{number}")
            times.append(time.perf_counter() - began)

    clients = [RouterClient(url) for _ in range(connections)]
    began = time.perf_counter()
    await asyncio.gather(*map(work, clients))
    taken_s = time.perf_counter() - began
    for client in clients:
        client.close()
    times.sort()
    return {
        "rate": len(times) / taken_s,
        "p50": times[len(times) // 2] * 1e6,
        "p99": times[len(times) * 99 // 100] * 1e6,
    }


async def measure(url: str, key: str, entries: int, count: int) -> dict[str, float]:
    """Return one round's figures of a fresh service."""
    async with RouterClient(url) as client:
        prompts = await populate(client, BlockHasher(key, BLOCK_SIZE), entries)
        rng = random.Random(5)
        asked = [prompts[rng.randrange(len(prompts))] for _ in range(count)]
        gc.collect()
        await latency(client, asked[:200])  # connections, caches and Python's own warm up
        found = {f"select {name}": value for name, value in (await latency(client, asked)).items()}
        for connections in (1, CONNECTIONS):
            before_s = await _cpu_s(client)
            for name, value in (await throughput(url, asked, connections)).items():
                found[f"{connections} {name}"] = value
            found[f"{connections} cpu"] = (await _cpu_s(client) - before_s) / count * 1e6
        return found


def in_process(field: Field, entries: int, count: int) -> Mapping[str, Mapping[str, float]]:
    sizes = {"workers": WORKERS, "tokens": TOKENS, "entries": entries, "count": count}
    return field.ask(1, {"ask": "place", **sizes})


def run(arguments: argparse.Namespace) -> int:
    report = Report(TITLE)
    entries, count = (QUICK_ENTRIES, QUICK_COUNT) if arguments.quick else (ENTRIES, COUNT)
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    field = Field(arguments.peers_dir, install=not arguments.quick)
    if field.missing:
        report.note(f"Dynamo is not measured: {field.missing}")
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        key = secrets.token_hex(16)
        with service(key) as url:
            one = asyncio.run(measure(url, key, entries, count))
        for who, times in in_process(field, entries, count).items():
            one |= {f"{who} {name}": times[f"place_{name}"] for name in ("us", "p99_us") if times}
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    tell(report, {name: median(each) for name, each in found.items()})
    return report.finish(arguments.json)


def tell(report: Report, found: Mapping[str, float]) -> None:
    rows: list[list[object]] = [
        ["over HTTP", found["select p50"], found["select p99"]],
        [f"{OURS}'s library", found.get(f"{OURS} us"), found.get(f"{OURS} p99_us")],
        [f"{DYNAMO}'s in process", found.get(f"{DYNAMO} us"), found.get(f"{DYNAMO} p99_us")],
    ]
    report.table(f"A select of {TOKENS:,} tokens, {WORKERS} workers, µs", ["", "p50", "p99"], rows)
    rows = [
        [each, *(found[f"{each} {name}"] for name in ("rate", "p50", "p99", "cpu"))]
        for each in (1, CONNECTIONS)
    ]
    headers = ["connections", "pairs a second", "p50 µs", "p99 µs", "service's CPU µs a pair"]
    report.table("select and free", headers, rows)
    times = ratio(found["select p50"], found.get(f"{DYNAMO} us"))
    report.goal(Goal("a select over HTTP, p50, of Dynamo's in process, ×", times, at_most=3.0))
    for each in (1, CONNECTIONS):
        # What one core could do, were the service alone on it: other work does not count.
        rate = ratio(1e6, found[f"{each} cpu"])
        report.goal(Goal(f"pairs per CPU second, connections: {each}", rate, at_least=1_000.0))


async def _cpu_s(client: RouterClient) -> float:
    """Return the processor time that the service has used: other work does not add to it."""
    found = re.search(r"^process_cpu_seconds_total (\S+)", await client.metrics(), re.MULTILINE)
    assert found is not None
    return float(found[1])


async def _push(
    client: RouterClient, worker: str, seq: int, events: Sequence[Sequence[object]]
) -> None:
    await client.post("events", worker=worker, seq=seq, timestamp=float(seq), events=list(events))


def _stored(parent: bytes, hashes: Sequence[bytes]) -> list[object]:
    above = None if parent == ROOT else parent
    return ["stored", above, len(hashes[0]), b"".join(hashes), "device"]


if __name__ == "__main__":
    raise SystemExit(run(parse()))
