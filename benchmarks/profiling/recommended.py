"""Does a recommended fleet keep its promise in the digital twin, and would a smaller one?

    python benchmarks/profiling/recommended.py [--quick] [--json FILE]

Fleets are recommended for public models on data sheets, and serve the load that they were
recommended for on a virtual clock, with the real router and schedulers: requests of equal lengths
that come at random. Then the same with one worker less of each pool in turn.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common.report import Goal, Report
from benchmarks.profiling.truth_traffic import Mix, Replayed
from stafette.platform.planner.config import SloConfig
from stafette.platform.planner.sizing import Split
from stafette.platform.profiling.estimating import Worker, estimate
from stafette.platform.profiling.recommending import Candidate, Load, Search, engines_of
from stafette.platform.twin.config import read
from stafette.platform.twin.results import Results
from stafette.platform.twin.tally import percentile
from stafette.platform.twin.twin import Twin

BUDGETS = (2048, 8192)
PERCENTILE = 95.0


@dataclass(frozen=True, slots=True)
class Case:
    model: str
    hardware: str
    tensor_parallel: tuple[int, ...]
    load: Load
    ttft_ms: float
    itl_ms: float

    @property
    def name(self) -> str:
        load = self.load
        lengths = f"{load.prompt_tokens:,} + {load.output_tokens:,}"
        return f"{self.model} on {self.hardware}, {load.rate:g}/s of {lengths}"

    @property
    def slo(self) -> SloConfig:
        return SloConfig(ttft_ms=self.ttft_ms, itl_ms=self.itl_ms)


def _load(rate: float, prompt: int, output: int) -> Load:
    return Load(rate=rate, prompt_tokens=prompt, output_tokens=output)


CASES = (
    Case("Llama-3.1-8B", "H100", (1,), _load(20, 2000, 200), ttft_ms=500, itl_ms=15),
    Case("Qwen3-8B", "L40S", (1,), _load(10, 1000, 300), ttft_ms=1500, itl_ms=60),
    Case("Qwen3-32B", "H200", (1,), _load(4, 4000, 500), ttft_ms=1500, itl_ms=30),
    Case("Qwen3-32B", "H200", (4,), _load(8, 4000, 1000), ttft_ms=1000, itl_ms=20),
)


def recommended(case: Case) -> Candidate:
    engines = []
    for tensor_parallel in case.tensor_parallel:
        worker = Worker(model=case.model, hardware=case.hardware, tensor_parallel=tensor_parallel)
        engines += engines_of(estimate(worker), tensor_parallel, BUDGETS, 512)
    found = Search(engines, case.load, case.slo).cheapest(1_000)
    assert found is not None, f"nothing keeps the promise of {case.name}"
    return found


def served(case: Case, fleet: Candidate, requests: int, folder: Path) -> Results:
    """Let the twin serve the case's load."""
    engine = fleet.engine
    (folder / "speed.json").write_text(engine.profile.to_json())
    flags = {
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "num_kv_blocks": engine.limits.kv_tokens // engine.limits.block_size,
        "max_model_len": 2 * (case.load.prompt_tokens + case.load.output_tokens),
    }
    pools = {
        name: {"replicas": count, "profile": "speed.json", "worker_class": "one"}
        for name, count in _pools(fleet.split).items()
    }
    told: dict[str, Any] = {"workload": {"poisson": {}}, "engine": flags, "pools": pools}
    (folder / "twin.yaml").write_text(yaml.safe_dump(told))
    load = case.load
    mix = Mix(prompts=(load.prompt_tokens,) * 2, outputs=(load.output_tokens,) * 2)
    asked = mix.draw(load.rate, requests, seed=1)
    return Twin(read(folder / "twin.yaml"), Replayed(asked)).run()


def smaller(fleet: Candidate) -> Iterator[Candidate]:
    """Yield it with one worker less of each pool."""
    split = fleet.split
    for less in (
        Split(split.prefill - 1, split.decode, 0),
        Split(split.prefill, split.decode - 1, 0),
        Split(0, 0, split.both - 1),
    ):
        whole = less.both > 0 if split.both else less.prefill > 0 and less.decode > 0
        if whole and less.total == split.total - 1:
            yield replace(fleet, split=less)


def tail(results: Results) -> tuple[float, float]:
    """Return the promised percentiles of TTFT and ITL, in ms; the first fifth warms up."""
    warm = sorted(results.served, key=lambda each: each.at_s)[len(results.served) // 5 :]
    ttft = percentile(sorted(each.ttft_s * 1e3 for each in warm), PERCENTILE)
    itl = percentile(sorted(each.itl_s * 1e3 for each in warm if each.itl_s), PERCENTILE)
    return ttft, itl


def look(case: Case, requests: int, folder: Path, report: Report) -> None:
    fleet = recommended(case)
    ttft, itl = tail(served(case, fleet, requests, folder))
    print(case.name, file=sys.stderr)
    less = [tail(served(case, each, requests, folder)) for each in smaller(fleet)]
    nearest = min(less, key=lambda each: _excess(case, *each), default=(None, None))
    rows = [
        ["TTFT p95 ms", case.ttft_ms, fleet.ttft_ms, ttft, nearest[0]],
        ["ITL p95 ms", case.itl_ms, fleet.speeds.itl_ms, itl, nearest[1]],
    ]
    split = ", ".join(f"{count} {name}" for name, count in _pools(fleet.split).items())
    title = f"{case.name}: {split}, tp {fleet.engine.tensor_parallel}"
    report.table(title, ["", "promised", "expected", "in the twin", "one worker less"], rows)
    report.goal(Goal(f"{case.name}: TTFT, of what was promised", ttft / case.ttft_ms, at_most=1.0))
    report.goal(Goal(f"{case.name}: ITL, of what was promised", itl / case.itl_ms, at_most=1.0))
    would_do = sum(_excess(case, *each) <= 1 for each in less)
    report.figure(f"{case.name}: smaller fleets that would do", would_do)


def _excess(case: Case, ttft_ms: float, itl_ms: float) -> float:
    return max(ttft_ms / case.ttft_ms, itl_ms / case.itl_ms)


def _pools(split: Split) -> dict[str, int]:
    if split.both:
        return {"aggregated": split.both}
    return {"prefill": split.prefill, "decode": split.decode}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one case, few requests")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    report = Report("Recommended fleets in the twin")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES[:1] if arguments.quick else CASES:
            look(case, 200 if arguments.quick else 1_000, Path(folder), report)
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
