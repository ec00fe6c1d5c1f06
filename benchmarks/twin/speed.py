"""How long the twin takes: for a trace on 8 workers, for 100 workers, and how that grows.

    python benchmarks/twin/speed.py [--trace FILE] [--quick] [--json FILE]

FILE is in Mooncake's form, such as the conversation trace of its FAST'25 release (12,031 requests);
without it the first goal is not measured. CPU seconds of one core: the twin has one thread. Beside
the trace's time stands that of Dynamo 1.6.1's replay, as it was measured on a quiet machine of the
same kind. Exit status 1 when a goal is missed.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.report import Goal, Report
from stafette.platform.config_reading import Part
from stafette.platform.twin.config import TwinConfig, TwinPool
from stafette.platform.twin.results import Results
from stafette.platform.twin.twin import Twin
from stafette.platform.twin.workloads.config import (
    LengthsConfig,
    PoissonConfig,
    TraceConfig,
    WorkloadConfig,
)
from stafette.platform.twin.workloads.making import make_workload
from stafette.workers.config import EngineConfig

TITLE = "The digital twin's speed"
DYNAMO_S = 5.0  # its Rust replay of the conversation trace, 8 workers
TRACE_WORKERS, LARGE_WORKERS = 8, 100
TRACE_LIMIT_S, LARGE_LIMIT_S = 60.0, 900.0
LARGE_REQUESTS, SMALL_REQUESTS = 100_000, 12_500
QUICK_REQUESTS, QUICK_LARGE = 800, 3_000
REQUESTS_S = 2.0  # of each worker
LENGTHS = LengthsConfig(prompt_tokens=2_000, output_tokens=200, shared_tokens=500, beginnings=64)
HEADERS = ("", "workers", "requests", "simulated s", "CPU s", "requests/CPU s", "x real time")


@dataclass(frozen=True, slots=True)
class Run:
    name: str
    workers: int
    results: Results
    cpu_s: float

    @property
    def requests_s(self) -> float:
        return len(self.results.served) / self.cpu_s

    def as_row(self) -> list[object]:
        real = self.results.duration_s
        served = len(self.results.served)
        return [
            *(self.name, self.workers, served, real),
            *(self.cpu_s, self.requests_s, real / self.cpu_s),
        ]


def simulate(name: str, workload: WorkloadConfig, workers: int, block_size: int) -> Run:
    tokens = 2_048_000  # as in the replay that this is compared with
    flags = {"block_size": block_size, "num_kv_blocks": tokens // block_size}
    engine = Part(EngineConfig, frozenset(), flags)
    pools = {"workers": TwinPool(replicas=workers)}
    config = TwinConfig(workload=workload, pools=pools, engine=engine)
    twin = Twin(config, make_workload(workload))
    began = time.process_time()
    results = twin.run()
    run = Run(name, workers, results, time.process_time() - began)
    print(f"{name}, {workers} workers: {run.cpu_s:.1f} s of CPU", file=sys.stderr, flush=True)
    return run


def trace(path: Path, limit: int | None) -> Run:
    workload = WorkloadConfig(trace=TraceConfig(file=str(path.absolute()), limit=limit))
    return simulate("trace", workload, TRACE_WORKERS, 512)


def large(requests: int, workers: int) -> Run:
    rate = REQUESTS_S * workers
    workload = WorkloadConfig(
        duration_s=requests / rate, poisson=PoissonConfig(requests_s=rate), lengths=LENGTHS
    )
    return simulate("made up", workload, workers, 64)


def main() -> int:
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--trace", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="few requests, no goals of size")
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    report, quick = Report(TITLE), asked.quick
    runs = [] if asked.trace is None else [trace(asked.trace, QUICK_REQUESTS if quick else None)]
    if quick:
        runs += [large(QUICK_LARGE // 8, 10), large(QUICK_LARGE // 8, LARGE_WORKERS)]
    else:
        runs += [large(SMALL_REQUESTS, LARGE_WORKERS), large(LARGE_REQUESTS, LARGE_WORKERS)]
    report.table("One core", HEADERS, [run.as_row() for run in runs])
    whole = runs[0].cpu_s if asked.trace is not None and not quick else None
    report.goal(Goal("the trace, s", whole, at_most=TRACE_LIMIT_S))
    if whole is not None:
        report.figure(f"of Dynamo's {DYNAMO_S:g} s for the trace", whole / DYNAMO_S)
    last_s = None if quick else runs[-1].cpu_s
    report.goal(Goal("100 workers, 100,000 requests, s", last_s, at_most=LARGE_LIMIT_S))
    grown = runs[-1].requests_s / runs[-2].requests_s
    name = "requests/s at 100 workers, of 10's" if quick else "requests/s at 8 x the requests"
    report.goal(Goal(name, None if quick else grown, at_least=0.8))
    if quick:
        report.figure(name, grown)
        report.note("--quick: too little for the goals")
    return report.finish(asked.json)


if __name__ == "__main__":
    raise SystemExit(main())
