"""Does the digital twin foretell what real workers do?

    python benchmarks/profiling/truth.py [--quick] [--json FILE] [--profile FILE]

On this machine: an engine with the embedded model is profiled, in this process and alone. Then a
prefill worker and a decode worker, a process of one thread each, serve requests that come at random
at two levels of load, placed by the real router and handed over for real. The twin gets the profile
and the same requests.

Four more numbers are measured beforehand, with other requests (truth_calibration.py): what a first
token and a step take beside what the twin says, on idle workers; and by how much each worker is
slower while the other one is busy. The twin is asked twice: first how busy each worker will be, and
then, with speeds to match, for the answer.

It needs a machine with nothing else to do: the workers and this process share its cores. --quick
shows that it works, and its goals mean nothing.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common.report import Goal, Report
from benchmarks.profiling.truth_calibration import (
    Slowness,
    alone,
    first_beside_ms,
    slowness,
    step_beside_ms,
)
from benchmarks.profiling.truth_traffic import Asked, Found, Mix, Replayed, ask_for_real
from benchmarks.serving.front import Front
from benchmarks.serving.nursery import Nursery
from stafette.platform.commands.profiling_command import open_engine, table
from stafette.platform.profiling.document import Document
from stafette.platform.profiling.measuring import Plan, begin, measure
from stafette.platform.twin.config import TwinConfig, prior, read
from stafette.platform.twin.twin import Twin
from stafette.router.router import RouterConfig
from stafette.workers import EngineConfig
from stafette.workers.mocker.speed_profile import Profile

FLAGS: dict[str, Any] = {
    "max_model_len": 1024,
    "num_kv_blocks": 1024,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 512,
    "num_threads": 1,
}
MIX = Mix(prompts=(64, 256), outputs=(32, 64))
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


@dataclass(frozen=True, slots=True)
class Scale:
    requests: int  # of each level
    idle: int
    plan: Plan
    samples: int


FULL = Scale(requests=200, idle=16, plan=PLAN, samples=5)
QUICK = Scale(requests=10, idle=3, plan=QUICK_PLAN, samples=2)


def profiled(path: Path, scale: Scale) -> Document:
    """Measure an engine with the workers' flags, while nothing else runs."""
    with open_engine(EngineConfig.of(**FLAGS), Profile(), scale.samples) as target:
        found = measure(begin(path, target), target, scale.plan, lambda news: news.write(path))
    return found


def capacity(model: Profile) -> float:
    """Return how many requests a second the busier of the two workers can take."""
    prompt, output = sum(MIX.prompts) / 2, sum(MIX.outputs) / 2
    prefill_ms = (
        model.step_ms
        + prompt * model.prefill_ms_per_token
        + prompt * prompt / 2 * model.prefill_ms_per_pair
    )
    context = prompt + output / 2
    decode_ms = output * (model.decode_ms_per_seq + context * model.decode_ms_per_kv_token)
    # Half of the time may go to what every step costs, however many sequences share it.
    return min(1e3 / prefill_ms, 0.5e3 / decode_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """All that the twin is told."""

    speed: Profile
    slowness: Slowness = Slowness(prefill=1.0, decode=1.0)
    frontend_s: float = 0.0

    def foretell(self, asked: list[Asked], folder: Path) -> Found:
        first, busy = self._run(asked, (self.speed, self.speed), folder)
        if self.slowness == Slowness(prefill=1.0, decode=1.0):
            return first
        return self._run(asked, self.slowness.speeds(self.speed, *busy), folder)[0]

    def config(self, speeds: Sequence[Profile], folder: Path) -> TwinConfig:
        pools = {}
        for name, speed in zip(("prefill", "decode"), speeds, strict=True):
            (folder / f"{name}.json").write_text(speed.to_json())
            pools[name] = {"replicas": 1, "profile": f"{name}.json", "worker_class": "real"}
        told = {
            "workload": {"poisson": {}},  # stands for the requests that are handed in
            "frontend_s": self.frontend_s,
            "engine": {k: v for k, v in FLAGS.items() if k != "num_threads"},
            "pools": pools,
        }
        (folder / "twin.yaml").write_text(yaml.safe_dump(told))
        return read(folder / "twin.yaml")

    def _run(
        self, asked: list[Asked], speeds: Sequence[Profile], folder: Path
    ) -> tuple[Found, tuple[float, float]]:
        """Return what the twin says, and which share of the time each worker is busy."""
        twin = Twin(self.config(speeds, folder), Replayed(asked))
        results = twin.run()
        assert len(results.served) == len(asked), results.failures
        took = max(each.done_s for each in results.served) - asked[0].at_s
        found = Found(
            tokens_s=sum(each.output_tokens for each in results.served) / took,
            ttft_ms=[each.ttft_s * 1e3 for each in results.served],
            itl_ms=[each.itl_s * 1e3 for each in results.served if each.itl_s is not None],
            handed_over=results.counters["handed_over"],
        )
        return found, (_busy(twin, "prefill", took), _busy(twin, "decode", took))


def _busy(twin: Twin, pool: str, took_s: float) -> float:
    workers = [each.worker for each in twin.fleet.replicas.values() if each.pool == pool]
    seconds = sum(worker.stats().busy_seconds for worker in workers if worker is not None)
    return min(1.0, seconds / took_s)


async def compare(speed: Profile, scale: Scale, folder: Path, report: Report) -> None:
    nursery = Nursery()
    known = prior(
        speed, Calibrated(speed=speed).config((speed, speed), folder).engine_flags("decode")
    )
    front = Front("truth", RouterConfig(priors={"": known}))
    try:
        made = await asyncio.gather(*(nursery.make(name, engine=FLAGS) for name in _BOTH))
        await front.follow({worker.name: worker.address for worker in made})
        calibrated = await calibrate(front, speed, scale, folder, report)
        most = capacity(calibrated.speed)
        for level in LEVELS:
            rate = level * most
            asked = MIX.draw(rate, scale.requests, seed=int(100 * level))
            note = f"{level:.0%}: {rate:.2f} requests/s"
            print(f"{note}, {asked[-1].at_s:.0f} s", file=sys.stderr)
            real = await ask_for_real(front, asked, seed=int(1000 * level))
            _tell(note, real, calibrated.foretell(asked, folder), report)
    finally:
        await front.close()
        nursery.close()


async def calibrate(
    front: Front, speed: Profile, scale: Scale, folder: Path, report: Report
) -> Calibrated:
    """Measure what the engine's profile does not tell."""
    idle = alone(MIX, scale.idle, seed=3)
    await ask_for_real(front, idle, 1)  # warms up, and is forgotten
    real = await ask_for_real(front, idle, 2)
    step_ms = step_beside_ms(real, Calibrated(speed=speed).foretell(idle, folder))
    speed = replace(speed, step_ms=speed.step_ms + step_ms)
    first_ms = first_beside_ms(real, Calibrated(speed=speed).foretell(idle, folder))
    found = await slowness(front, 2 * scale.samples)
    report.figure("a step beside the profile's, idle, ms", step_ms)
    report.figure("a first token beside what the twin says, idle, ms", first_ms)
    report.figure("prefill worker's time, beside a busy decode worker", found.prefill)
    report.figure("decode worker's time, beside a busy prefill worker", found.decode)
    return Calibrated(speed=speed, slowness=found, frontend_s=first_ms / 1e3)


def _tell(note: str, real: Found, twin: Found, report: Report) -> None:
    rows = []
    told = twin.figures()
    for name, value in real.figures().items():
        off = told[name] / value - 1
        rows.append([name, value, told[name], f"{off:+.0%}"])
        most = MOST_OFF.get(name, MOST_OFF_LATENCY)
        report.goal(Goal(f"{note}: {name}, twin off by", abs(off), at_most=most))
    rows.append(["handed over", real.handed_over, twin.handed_over, ""])
    report.table(note, ["", "real", "twin", "off"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few requests; goals mean nothing")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--profile", type=Path, help="keep it here, or take what is there")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    report = Report("Real workers, and what the twin says of them")
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.profile or Path(folder) / "profile.json"
        document = profiled(path, scale)
        print(table(document), file=sys.stderr)
        report.figure("the step model's mean error", document.fit.mean_error)
        asyncio.run(compare(document.model, scale, Path(folder), report))
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
