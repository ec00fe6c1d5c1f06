"""Does the digital twin foretell what workers do?

    python benchmarks/profiling/truth.py [--quick] [--json FILE] [--only real,mock] [--profile FILE]

A prefill worker and a decode worker serve requests that come at random at two levels of load,
placed by the real router and handed over by the real dispatcher. The twin gets the same requests.

real    Workers with the embedded model, a process of one thread each. First each is profiled alone,
        as an endpoint. Then four more numbers are measured, by other requests
        (truth_calibration.py): what a first token and a step take beside what the twin says, on
        idle workers; and by how much each worker is slower while the other one is busy, from a
        load at half of capacity that is not compared. The twin is asked twice: first how busy each
        worker will be, and then, with speeds to match, again.
        This needs a machine with nothing else to do, for workers and clients share its cores.
mock    Mock workers on the wall clock, of known speed: what is left is placing, queueing, batching.
        They need little of the machine, and only a first token's way is measured beforehand.

--quick shows that it works; its goals mean nothing.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.common.report import Goal, Report
from benchmarks.profiling.others import Others
from benchmarks.profiling.truth_calibration import (
    TOGETHER,
    Placing,
    Slowness,
    alone,
    first_beside_ms,
    fitted,
    slower,
    step_beside_ms,
)
from benchmarks.profiling.truth_stack import Stack
from benchmarks.profiling.truth_traffic import Asked, Found, Mix, ask_for_real
from benchmarks.profiling.truth_twin import Calibrated, Setup
from benchmarks.serving.disagg_mocks import ENGINE as MOCK_ENGINE
from benchmarks.serving.disagg_mocks import SPEEDUP as MOCK_SPEEDUP
from benchmarks.serving.front import BLOCK_SIZE, MODEL, Front
from benchmarks.serving.nursery import Nursery
from benchmarks.serving.overhead import script
from stafette.platform.commands.profiling_command import table
from stafette.platform.profiling.document import Document, Limits
from stafette.platform.profiling.endpoint_target import EndpointTarget
from stafette.platform.profiling.measuring import Plan, begin, measure
from stafette.platform.twin.config import prior
from stafette.router.router import RouterConfig
from stafette.workers.mocker.speed_profile import Profile

FLAGS = {
    "max_model_len": 1024,
    "num_kv_blocks": 1024,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 512,
    "num_threads": 1,
}
REAL_MIX = Mix(prompts=(64, 256), outputs=(32, 64))
MOCK_MIX = Mix(prompts=(500, 4_000), outputs=(50, 150))
LEVELS = (0.35, 0.7)  # of what the profile says the busier worker can take
PLAN = Plan(
    prompts=(32, 64, 128, 256, 512),
    shares=(0.0, 0.5),
    batches=(1, 2, 4, 8, 16),
    contexts=(64, 160, 320),
)
QUICK_PLAN = Plan(prompts=(64, 256), shares=(0.0,), batches=(1, 4), contexts=(64, 160))
MOST_OFF = {"output tokens/s": 0.10}
MOST_OFF_LATENCY = 0.20
_BOTH = ("p0", "d0")
_LIMITS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens")
_KV_TOKENS = FLAGS["num_kv_blocks"] * BLOCK_SIZE
_KV_BYTES = 23_040  # of a token of the embedded model


@dataclass(frozen=True, slots=True)
class Scale:
    requests: int  # of each level
    idle: int
    plan: Plan
    samples: int


FULL = Scale(requests=200, idle=16, plan=PLAN, samples=5)
QUICK = Scale(requests=10, idle=3, plan=QUICK_PLAN, samples=2)


async def real(kept: Path, scale: Scale, folder: Path, report: Report) -> None:
    nursery = Nursery()
    try:
        made = await asyncio.gather(*(nursery.make(name, engine=FLAGS) for name in _BOTH))
        addresses = {worker.name: worker.address for worker in made}
        document = await profiled(addresses, kept, scale, report)
        setup = Setup(flags=FLAGS, mix=REAL_MIX, speed=document.model)
        await compare("real workers", setup, addresses, scale, folder, report)
    finally:
        nursery.close()


async def profiled(
    addresses: Mapping[str, str], path: Path, scale: Scale, report: Report
) -> Document:
    """Measure the workers themselves, each alone."""
    front, others = Front("profile"), Others()
    try:
        await front.follow(addresses)
        asker = Stack(front, Placing(front), asyncio.get_running_loop())
        limits = Limits(**{name: FLAGS[name] for name in _LIMITS}, kv_tokens=_KV_TOKENS)
        base = Profile(kv_bytes_per_token=_KV_BYTES)
        target = EndpointTarget(asker, MODEL, limits, base, samples=scale.samples)
        found = await asyncio.to_thread(
            measure, begin(path, target), target, scale.plan, lambda news: news.write(path)
        )
    finally:
        await front.close()
    print(table(found), file=sys.stderr)
    report.figure("profile: others' share of the cores", others.share())
    report.figure("profile: the step model's mean error", found.fit.mean_error)
    return found


async def mock(scale: Scale, folder: Path, report: Report) -> None:
    speed = slower(Profile(), 1 / MOCK_SPEEDUP)
    speed = replace(
        speed,
        transfer_gb_s=speed.transfer_gb_s * MOCK_SPEEDUP,
        transfer_latency_ms=speed.transfer_latency_ms / MOCK_SPEEDUP,
    )
    setup = Setup(flags=asdict(MOCK_ENGINE), mix=MOCK_MIX, speed=speed)
    with script("disagg_mocks.py", *_BOTH) as (said, _):
        await compare("mock workers", setup, json.loads(said), scale, folder, report)


async def compare(
    who: str,
    setup: Setup,
    addresses: Mapping[str, str],
    scale: Scale,
    folder: Path,
    report: Report,
) -> None:
    twin = Calibrated(setup=setup, folder=folder)
    flags = twin.config((setup.speed, setup.speed)).engine_flags("decode")
    front = Front("truth", RouterConfig(priors={"": prior(setup.speed, flags)}))
    seen: list[tuple[str, list[Asked], Found]] = []
    try:
        await front.follow(addresses)
        twin = await calibrate(who, front, twin, scale, report)
        for level in LEVELS:
            rate = level * twin.setup.capacity
            asked = setup.mix.draw(rate, scale.requests, seed=int(100 * level))
            note = f"{who}, {level:.0%}: {rate:.2f} requests/s"
            print(f"{note}, {asked[-1].at_s:.0f} s", file=sys.stderr)
            others = Others()
            found = await ask_for_real(front, asked, seed=int(1000 * level))
            report.figure(f"{note}: others' share of the cores", others.share())
            seen.append((note, asked, found))
    finally:
        await front.close()
    for note, asked, found in seen:  # only now: nothing else may keep this process from listening
        _tell(note, found, twin.foretell(asked), report)


async def calibrate(
    who: str, front: Front, twin: Calibrated, scale: Scale, report: Report
) -> Calibrated:
    """Measure what the profile does not tell."""
    idle = alone(twin.setup.mix, scale.idle, seed=3)
    await ask_for_real(front, idle, 1)  # warms up, and is forgotten
    found = await ask_for_real(front, idle, 2)
    if who.startswith("real"):
        step_ms = step_beside_ms(found, await asyncio.to_thread(twin.foretell, idle))
        speed = twin.setup.speed
        speed = replace(speed, step_ms=max(0.0, speed.step_ms + step_ms))
        twin = replace(twin, setup=replace(twin.setup, speed=speed))
        report.figure(f"{who}: a step beside the profile's, idle, ms", step_ms)
    first_ms = first_beside_ms(found, await asyncio.to_thread(twin.foretell, idle))
    report.figure(f"{who}: a first token beside what the twin says, idle, ms", first_ms)
    twin = replace(twin, frontend_s=first_ms / 1e3)
    if not who.startswith("real"):
        return twin
    together = twin.setup.mix.draw(TOGETHER * twin.setup.capacity, scale.requests // 2, seed=7)
    found = await ask_for_real(front, together, 3)
    slowed = await asyncio.to_thread(
        fitted, found, lambda slowed: replace(twin, slowness=slowed).foretell(together)
    )
    _tell_slowness(who, slowed, report)
    return replace(twin, slowness=slowed)


def _tell_slowness(who: str, slowed: Slowness, report: Report) -> None:
    for name, factor in asdict(slowed).items():
        report.figure(f"{who}: {name} worker's time while the other is busy, × alone", factor)


def _tell(note: str, found: Found, twin: Found, report: Report) -> None:
    rows = []
    told = twin.figures()
    for name, value in found.figures().items():
        off = told[name] / value - 1
        rows.append([name, value, told[name], f"{off:+.0%}"])
        most = MOST_OFF.get(name, MOST_OFF_LATENCY)
        report.goal(Goal(f"{note}: {name}, twin off by", abs(off), at_most=most))
    rows.append(["handed over", found.handed_over, twin.handed_over, ""])
    report.table(note, ["", "real", "twin", "off"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few requests; goals mean nothing")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--only", default="real,mock")
    parser.add_argument("--profile", type=Path, help="keep it here, or take what is there")
    arguments = parser.parse_args()
    scale, parts = QUICK if arguments.quick else FULL, arguments.only.split(",")
    report = Report("Workers, and what the twin says of them")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "real" in parts:
            kept = arguments.profile or folder / "profile.json"
            asyncio.run(real(kept, scale, folder, report))
        if "mock" in parts:
            asyncio.run(mock(scale, folder, report))
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
