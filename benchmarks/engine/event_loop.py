"""How late is an asyncio timer beside a busy engine? Goal: < 10 ms at p99 with 64 sequences.

    python benchmarks/engine/event_loop.py [--quick] [--json FILE]

A timer fires every 5 ms on the event loop while 64 requests run in the same process. The same timer
is measured with the engine idle, before and after, so that the machine's own lateness can be seen.
"""

import argparse
import asyncio
import random
import time

from benchmarks.common.report import Goal, Report
from stafette.workers import AsyncEngine, EngineConfig, SamplingParams
from stafette.workers.request import Request

PERIOD_S = 0.005
SEQUENCES = 64


async def lateness_ms(stop: asyncio.Event) -> list[float]:
    late = []
    while not stop.is_set():
        due = time.perf_counter() + PERIOD_S
        await asyncio.sleep(PERIOD_S)
        late.append((time.perf_counter() - due) * 1e3)
    return late


async def idle(seconds: float) -> list[float]:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)
    return await lateness_ms(stop)


async def busy(engine: AsyncEngine, rounds: int) -> tuple[list[float], float]:
    """Return the timer's lateness while the requests run, and their output tokens a second."""
    stop = asyncio.Event()
    timer = asyncio.create_task(lateness_ms(stop))
    started = time.perf_counter()
    tokens = 0
    for turn in range(rounds):
        tokens += sum(await asyncio.gather(*(run(engine, turn, i) for i in range(SEQUENCES))))
    rate = tokens / (time.perf_counter() - started)
    stop.set()
    return await timer, rate


async def run(engine: AsyncEngine, turn: int, index: int) -> int:
    words = random.Random(turn * SEQUENCES + index)
    request = Request(
        request_id=f"{turn}-{index}",
        prompt_token_ids=[words.randrange(1000, 40_000) for _ in range(128)],
        params=SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True),
    )
    return sum([len(delta.token_ids) async for delta in engine.generate(request)])


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


async def measure(rounds: int) -> Report:
    engine = await AsyncEngine.start(EngineConfig(max_model_len=512, max_num_seqs=SEQUENCES))
    await busy(engine, 1)  # warm
    quiet = await idle(2.0)
    late, rate = await busy(engine, rounds)
    quiet += await idle(2.0)
    await engine.close()
    report = Report("An asyncio timer beside the engine, 64 sequences")
    for name, values in (("idle", quiet), ("busy", late)):
        for share in (0.5, 0.99, 1.0):
            report.figure(f"{name} p{share * 100:g} ms late", percentile(values, share))
    report.figure("output tok/s", rate)
    report.goal(Goal("busy p99 < 10 ms", percentile(late, 0.99), at_most=10.0))
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    report = asyncio.run(measure(1 if arguments.quick else 3))
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
