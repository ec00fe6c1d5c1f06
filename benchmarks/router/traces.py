"""A trace of requests on 8 simulated workers: how much is found cached, when answers begin.

    python benchmarks/router/traces.py [--trace FILE] [--quick] [--json FILE] [--png FILE]

FILE is in Mooncake's form, such as the conversation trace of its FAST'25 release; without it the
requests are made up, and the goals are not measured. Every placement is the real router's, on a
virtual clock. Beside its own cost in milliseconds (`kv`) stands Dynamo's in blocks, with its
defaults and as it is best re-weighted (credit 2, prefill scale 4). Exit status 1 when a goal is
missed.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.common.chart import bars
from benchmarks.common.report import Goal, Report
from benchmarks.router.simulator import (
    PROFILE,
    Arrival,
    Result,
    Simulation,
    pooled_percent,
    read_trace,
    spread,
    synthetic_trace,
)
from stafette.router.policies.dynamo import DynamoConfig
from stafette.router.registry import PolicyConfig, PolicyName
from stafette.router.router import RouterConfig
from stafette.router.transfer_cost import TransferConfig

TITLE = "A trace on 8 simulated workers"
WORKERS = 8
CAPACITIES, QUICK_CAPACITIES = (500, 1_000, 2_000, 4_000, 8_000, 16_000, 0), (1_000, 4_000)
SPEEDS = (1.0, 4.0)
QUICK_REQUESTS = 3_000
HERD_CAPACITY, HERD_SPEED, SHARE_S = 4_000, 4.0, 0.05
REWEIGHTED = DynamoConfig(overlap_score_credit=2.0, prefill_load_scale=4.0)

KV, PULL, DYNAMO, BEST = "kv", "kv with pulls", "Dynamo", "Dynamo re-weighted"
Point = tuple[float, int]  # speed, capacity


def config(
    name: PolicyName, dynamo: DynamoConfig | None = None, pull: bool = False
) -> RouterConfig:
    return RouterConfig(
        policy=PolicyConfig(name=name, dynamo=dynamo or DynamoConfig()),
        transfer=TransferConfig(pull=pull),
        priors={"simulated": PROFILE},
    )


CONTENDERS = {
    "round robin": config("round_robin"),
    DYNAMO: config("dynamo"),
    BEST: config("dynamo", REWEIGHTED),
    KV: config("kv"),
    PULL: config("kv", pull=True),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=TITLE)
    add = parser.add_argument
    add("--trace", type=Path, metavar="FILE", help="JSON lines; default: made-up conversations")
    add("--quick", action="store_true", help="two capacities and fewer requests")
    add("--json", metavar="FILE")
    add("--png", metavar="FILE")
    return parser.parse_args()


class Study:
    def __init__(self, trace: Path | None, quick: bool) -> None:
        self.capacities = QUICK_CAPACITIES if quick else CAPACITIES
        self.limit = QUICK_REQUESTS if quick else None
        self.trace = trace
        self.results: dict[Point, dict[str, Result]] = {}
        self.pooled: dict[Point, float] = {}
        self.herds: list[list[object]] = []

    def arrivals(self, speed: float) -> list[Arrival]:
        if self.trace is not None:
            return read_trace(self.trace, speed, self.limit)
        return synthetic_trace(self.limit or 12_000, speed)

    def run(self) -> None:
        for speed in SPEEDS:
            arrivals = self.arrivals(speed)
            for capacity in self.capacities:
                point = speed, capacity
                self.pooled[point] = pooled_percent(arrivals, WORKERS * capacity)
                self.results[point] = {
                    name: Simulation(chosen, WORKERS, capacity).run(arrivals)
                    for name, chosen in CONTENDERS.items()
                }

    def herd(self) -> None:
        """Several routers, which hear of each other's reservations or do not."""
        arrivals = spread(self.arrivals(HERD_SPEED))
        for routers, share_s in ((1, None), (2, None), (2, SHARE_S), (4, None), (4, SHARE_S)):
            simulation = Simulation(CONTENDERS[KV], WORKERS, HERD_CAPACITY, routers, share_s)
            found = simulation.run(arrivals)
            shared = "–" if routers == 1 else "no" if share_s is None else f"{share_s * 1e3:g} ms"
            self.herds.append(
                [routers, shared, found.hit_percent, found.ttft_mean_s, found.ttft_p99_s]
            )


def tables(study: Study, report: Report) -> None:
    for (speed, capacity), results in study.results.items():
        rows: list[list[object]] = [
            [
                name,
                found.hit_percent,
                found.ttft_mean_s,
                found.ttft_p99_s,
                max(found.per_worker) * WORKERS / sum(found.per_worker),
                median(found.decide_s) * 1e6,
            ]
            for name, found in results.items()
        ]
        rows.append(["one pooled cache", study.pooled[speed, capacity], None, None, None, None])
        size = f"{capacity:,} blocks a worker" if capacity else "no bound"
        headers = ["", "hit %", "TTFT mean s", "p99 s", "most / mean", "decision µs"]
        report.table(f"× {speed:g} speed, {size}", headers, rows)
    headers = ["routers", "share after", "hit %", "TTFT mean s", "p99 s"]
    title = f"Routers that share, × {HERD_SPEED:g}, {HERD_CAPACITY:,} blocks"
    report.table(title, headers, study.herds)


def goals(study: Study, report: Report) -> None:
    """Each goal holds at every capacity and speed: the worst of them is shown."""
    measured = study.trace is not None
    points = list(study.results.values())
    gained = min(found[KV].hit_percent - found[BEST].hit_percent for found in points)
    mean = max(_share(found, "ttft_mean_s") for found in points)
    p99 = max(_share(found, "ttft_p99_s") for found in points)
    pooled = min(
        study.results[point][PULL].hit_percent / study.pooled[point] for point in study.results
    )
    for name, value, least, most in (
        (f"hit rate above {BEST}'s, points", gained, 0.0, None),
        ("TTFT mean, of the better Dynamo's", mean, None, 1.0),
        ("TTFT p99, of the better Dynamo's", p99, None, 1.0),
        ("with pulls, of the pooled hit rate", pooled, 0.9, None),
    ):
        report.goal(Goal(name, value if measured else None, at_least=least, at_most=most))


def _share(found: Mapping[str, Result], what: str) -> float:
    theirs: float = min(getattr(found[DYNAMO], what), getattr(found[BEST], what))
    ours: float = getattr(found[KV], what)
    return ours / theirs


def draw(path: str, study: Study) -> None:
    def hits(name: str) -> Sequence[float]:
        return [found[name].hit_percent for found in study.results.values()]

    labels = [f"×{speed:g}\n{capacity or '∞'}" for speed, capacity in study.results]
    bars(path, TITLE, "hit %", labels, {name: hits(name) for name in CONTENDERS})


def main() -> int:
    arguments = parse()
    study, report = Study(arguments.trace, arguments.quick), Report(TITLE)
    study.run()
    study.herd()
    tables(study, report)
    goals(study, report)
    report.note("for several routers, requests of one timestamp come one after the other")
    if arguments.trace is None:
        report.note("no --trace: the requests are made up, and the goals are not measured")
    if arguments.png:
        draw(arguments.png, study)
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
