"""How much one process of mock workers carries: on a virtual clock, and on the wall's.

    python benchmarks/workers/mocker.py [--quick] [--json FILE]

Decoding steps: 8 sequences on one worker, as fast as it goes, one by one as on the wall clock, and
many at once where nothing happens between them, as in a simulation. Virtual: workers on one clock,
with prompts of 512 tokens and answers of 32; requests for each second of CPU. Wall: real
MockWorkers with their event publishers in one event loop; how late their steps come, and the CPU
they take. CPU times, not the clock's, wherever something else may run. Exit status 1 when a goal is
missed.
"""

import argparse
import asyncio
import json
import os
import random
import time
from dataclasses import replace
from statistics import median

import psutil
import uvloop

from benchmarks.common.report import Goal, Report
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.workers.mocker.config import DEFAULT_FLAGS, MockerConfig
from stafette.workers.mocker.host import MockHost
from stafette.workers.mocker.virtual import VirtualCluster, VirtualTime
from stafette.workers.mocker.worker import MockWorker
from stafette.workers.request import Request
from stafette.workers.sampling.params import SamplingParams
from stafette.workers.service.frames import Order

TITLE = "Mock workers in one process"
PROMPT_TOKENS, OUTPUT_TOKENS = 512, 32
POINTS, QUICK_POINTS = ((100, 10), (100, 40), (300, 10), (300, 40)), ((50, 10),)
FLAGS = replace(DEFAULT_FLAGS, num_kv_blocks=4_096)


def request(name: str, rng: random.Random, prompt_tokens: int, max_tokens: int) -> Request:
    prompt = rng.choices(range(3, 40_000), k=prompt_tokens)
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return Request(request_id=name, prompt_token_ids=prompt, params=params)


def decoding(steps: int, at_once: bool = True) -> float:
    """Return steps of 8 sequences for each second of CPU."""
    clock, hear = VirtualTime(), _ignore if at_once else None
    worker = VirtualCluster(clock).add(MockerConfig(name="w"), _ignore, hear)
    rng = random.Random(1)
    for number in range(8):
        worker.generate(request(str(number), rng, 64, steps))
    began = time.process_time()
    clock.run()
    return worker.stats().num_steps / (time.process_time() - began)


def virtual(workers: int, requests: int) -> float:
    """Return requests for each second of CPU, spread over many workers."""
    clock, rng = VirtualTime(), random.Random(2)
    cluster = VirtualCluster(clock)
    fleet = [
        cluster.add(MockerConfig(name=f"w{number}", engine=FLAGS), _ignore, _ignore)
        for number in range(workers)
    ]
    for number in range(requests):
        asked = request(str(number), rng, PROMPT_TOKENS, OUTPUT_TOKENS)
        worker = fleet[number % workers]
        clock.at(number * 0.01, lambda w=worker, r=asked: w.generate(r))  # type: ignore[misc]
    began = time.process_time()
    clock.run()
    return requests / (time.process_time() - began)


def _ignore(told: object) -> None:
    pass


def fleet(workers: int) -> list[MockWorker]:
    """Let workers live in this loop."""
    token = os.urandom(16)
    host = MockHost(AgentConfig(name=f"mock-{os.getpid()}", token=token, transports=("tcp",)))
    configs = [MockerConfig(name=f"w{number}", engine=FLAGS) for number in range(workers)]
    return [MockWorker(config, host) for config in configs]


async def wall(workers: int, requests_s: float, lasts_s: float) -> dict[str, float]:
    """Return what it takes to serve at that rate, for a while."""
    process, rng = psutil.Process(), random.Random(3)
    made, tasks = fleet(workers), []
    cpu, began = time.process_time(), time.perf_counter()
    while (now := time.perf_counter() - began) < lasts_s:
        asked = request(str(now), rng, PROMPT_TOKENS, OUTPUT_TOKENS)
        tasks.append(asyncio.create_task(_serve(rng.choice(made), asked)))
        await asyncio.sleep(rng.expovariate(requests_s))
    await asyncio.gather(*tasks)
    spent, took = time.process_time() - cpu, time.perf_counter() - began
    steps = sum(worker.core.stats().num_steps for worker in made)
    return {
        "late_ms": 1e3 * sum(worker.late_seconds for worker in made) / steps,
        "cpu_share": spent / took,
        "requests_s": len(tasks) / took,
        "tokens_s": len(tasks) * OUTPUT_TOKENS / took,
        "threads": process.num_threads(),
        "memory_mib": process.memory_info().rss / 2**20,
    }


async def _serve(worker: MockWorker, asked: Request) -> None:
    async for _ in worker.generate(Order(asked)):
        pass


def in_a_child(workers: int, requests_s: float, lasts_s: float) -> dict[str, float]:
    """Measure in a process of its own, which needs not be tidied up."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        found = uvloop.run(wall(workers, requests_s, lasts_s))
        os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told: dict[str, float] = json.loads(pipe.read())
    os.waitpid(child, 0)
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--quick", action="store_true", help="fewer steps, one point")
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    report, rounds = Report(TITLE), 1 if asked.quick else 3
    rows = []
    for workers, rate in QUICK_POINTS if asked.quick else POINTS:
        found = in_a_child(workers, rate, 4.0 if asked.quick else 10.0)
        rows.append([workers, rate, *found.values()])
    headers = ["workers", "asked/s", "late ms", "CPU", "requests/s", "tokens/s", "threads", "MiB"]
    report.table("On the wall clock: how late a step is on average", headers, rows)
    num_steps = 500 if asked.quick else 3_000
    steps = median(decoding(num_steps) for _ in range(rounds))
    single = median(decoding(num_steps, at_once=False) for _ in range(rounds))
    report.figure("decoding steps of 8 sequences one by one, for each s of CPU", single)
    served = [median(virtual(count, 1_000) for _ in range(rounds)) for count in (10, 300)]
    report.figure("virtual: requests for each s of CPU, 10 workers", served[0])
    report.figure("virtual: 300 workers", served[1])
    report.goal(Goal("decoding steps of 8 sequences, for each s of CPU", steps, at_least=20_000.0))
    report.goal(Goal("virtual: 300 workers, of 10 workers' rate", served[1] / served[0], 0.5))
    report.goal(Goal("late, mean of the first point, ms", rows[0][2], at_most=2.0))
    return report.finish(asked.json)


if __name__ == "__main__":
    raise SystemExit(main())
