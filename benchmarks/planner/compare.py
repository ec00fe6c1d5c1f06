"""Ways to size a fleet, side by side in the digital twin: promises kept, GPU-hours, changes.

    python benchmarks/planner/compare.py [--trace FILE] [--seeds N] [--jobs N] [--only NAME]
                                         [--other N] [--runs FILE] [--quick] [--json FILE]

FILE is in Mooncake's form; without it its two scenarios are left out. All policies see the same
requests, the same workers and the same start-up time, and the medians of the seeds decide. What
--runs has is not run again, and what was run is added to it. Exit status 1 when a goal is missed.
--other takes N loads drawn at random in their place, a seed of each, and tells their medians.

The clairvoyant policy knows every request before it comes: it shows what is possible at all. Where
its GPU-hours are more than the share of Dynamo's that is the goal, nobody can reach it.

Dynamo's policy keeps fewer promises than ours at its defaults, so that its GPU-hours there are no
comparison. Its own knobs are therefore turned: tighter limits, and more replicas at least, for
which somebody must know the peak. The cheapest point that keeps what ours keeps, or 99 % if that is
less, is the one that the goal is judged by; where there is none, the one that keeps most. The share
of its hours at its defaults is told beside it.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benchmarks.common.report import Goal, Report
from benchmarks.planner.measuring import (
    CLAIRVOYANT,
    DYNAMO,
    FRONTIER,
    KEPT,
    OURS,
    PEAK,
    POLICIES,
    Figures,
    measure,
)
from benchmarks.planner.other_scenarios import others
from benchmarks.planner.scenarios import STARTUP_S, Scenario, scenarios

TITLE = "Sizing a fleet in the digital twin"
_GPU_SHARE, _CHANGES_AN_HOUR = 0.8, 2.0
_RECOVERY_S, _VIOLATION_S = STARTUP_S + 30.0, 10.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=TITLE)
    add = parser.add_argument
    add("--trace", type=Path, metavar="FILE", help="conversations, JSON lines")
    add("--seeds", type=int, default=3)
    add("--jobs", type=int, default=2, help="processes at a time (default: %(default)s)")
    add("--only", metavar="NAME", help="scenarios whose name holds this")
    add("--other", type=int, metavar="N", help="so many loads drawn at random, and no others")
    add("--runs", type=Path, metavar="FILE", help="JSON lines of what was run")
    add("--quick", action="store_true", help="one short scenario and one seed")
    add("--json", metavar="FILE")
    return parser.parse_args()


class Study:
    def __init__(
        self,
        chosen: list[Scenario],
        seeds: int,
        frontier: Sequence[str],
        policies: Sequence[str] = POLICIES,
    ) -> None:
        self.scenarios = chosen
        self.seeds = seeds
        self.frontier = (DYNAMO, *frontier)
        self.policies = (*policies, *frontier)
        self.figures: list[Figures] = []

    def run(self, jobs: int, kept: Path | None) -> None:
        """Run what is not in the file of those kept, and keep it there."""
        if kept is not None and kept.exists():
            self.figures = [Figures(**json.loads(line)) for line in kept.open()]
        there = {(f.scenario, f.policy, f.seed) for f in self.figures}
        wanted = [
            (scenario, policy, seed)
            for seed in range(1, self.seeds + 1)
            for scenario in self.scenarios
            for policy in self.policies
            if seed == 1 or scenario.workload.trace is None  # which is the same for every seed
            if (scenario.name, policy, seed) not in there
        ]
        with ProcessPoolExecutor(jobs) as pool:
            for done in as_completed([pool.submit(measure, *each) for each in wanted]):
                self.figures.append(done.result())
                line = json.dumps(asdict(self.figures[-1]))
                print(line, flush=True)
                if kept is not None:
                    with kept.open("a") as file:
                        file.write(line + "\n")

    def of(self, scenario: str, policy: str, what: Callable[[Figures], float | None]) -> float:
        """Return the median of the seeds."""
        runs = [f for f in self.figures if (f.scenario, f.policy) == (scenario, policy)]
        return median(value for value in map(what, runs) if value is not None)

    def kept(self, scenario: str, policy: str) -> float:
        return self.of(scenario, policy, lambda f: f.attainment)

    def hours(self, scenario: str, policy: str) -> float:
        return self.of(scenario, policy, lambda f: f.gpu_hours)

    def as_good(self, scenario: str) -> str:
        """Return Dynamo's cheapest point that keeps what ours keeps, or the one that keeps most."""
        enough = min(self.kept(scenario, OURS), KEPT) - 1e-9
        points = [p for p in self.frontier if self.kept(scenario, p) >= enough]
        if not points:
            return max(
                self.frontier, key=lambda p: (self.kept(scenario, p), -self.hours(scenario, p))
            )
        return min(points, key=lambda p: self.hours(scenario, p))

    def share(self, scenario: str, policy: str = OURS) -> float:
        """Return the GPU-hours of Dynamo's, where it keeps as much as ours."""
        return self.hours(scenario, policy) / self.hours(scenario, self.as_good(scenario))

    def names(self, beginning: str = "") -> Iterator[str]:
        return (s.name for s in self.scenarios if s.name.startswith(beginning))


def tables(study: Study, report: Report) -> None:
    headers = ["", "promise kept %", "GPU-hours", "changes", "flips", "requests"]
    for name in study.names():
        rows: list[list[object]] = []
        for policy in study.policies:
            kept, hours = 100 * study.kept(name, policy), study.hours(name, policy)
            counts = [
                int(study.of(name, policy, what))
                for what in (lambda f: f.changes, lambda f: f.flips, lambda f: f.requests)
            ]
            rows.append([policy, kept, hours, *counts])
        report.table(name, headers, rows)


def goals(study: Study, report: Report) -> None:
    for name in study.names():
        if study.kept(name, PEAK) >= KEPT:
            report.goal(Goal(f"{name}: promise kept", study.kept(name, OURS), at_least=KEPT))
        share, point = study.share(name), study.as_good(name)
        report.goal(Goal(f"{name}: GPU-hours of Dynamo's, as good", share, at_most=_GPU_SHARE))
        possible = round(study.share(name, CLAIRVOYANT), 2)
        report.figure(f"{name}: the same of who knows what comes", possible)
        report.figure(f"{name}: Dynamo's point", f"{point}: {100 * study.kept(name, point):.1f} %")
        default = study.hours(name, OURS) / study.hours(name, DYNAMO)
        report.figure(f"{name}: GPU-hours of Dynamo's at its defaults", round(default, 2))
    for name in study.names("constant"):
        changes = study.of(name, OURS, lambda f: f.changes)
        hours_long = next(s.workload.duration_s for s in study.scenarios if s.name == name) / 3_600
        report.goal(
            Goal(f"{name}: changes an hour", changes / hours_long, at_most=_CHANGES_AN_HOUR)
        )
    for name in study.names("step"):
        recovery = study.of(name, OURS, lambda f: f.recovery_s)
        report.goal(Goal(f"{name}: recovered after, s", recovery, at_most=_RECOVERY_S))
    for name in study.names("input"):
        violation = study.of(name, OURS, lambda f: f.violation_s)
        report.goal(Goal(f"{name}: violated for, s", violation, at_most=_VIOLATION_S))


def medians(study: Study, report: Report) -> None:
    """Tell what all loads together show: none of them was looked at when anything was set."""
    rows: list[list[object]] = []
    for policy in study.policies:
        kept = [study.kept(name, policy) for name in study.names()]
        of_peak = [study.hours(name, policy) / study.hours(name, PEAK) for name in study.names()]
        rows.append([policy, 100 * median(kept), 100 * min(kept), median(of_peak)])
    headers = ["", "promise kept %, median", "least", "GPU-hours of static peak's"]
    report.table(f"{len(study.scenarios)} loads drawn at random", headers, rows)
    share = median(study.share(name) for name in study.names())
    report.goal(Goal("GPU-hours of Dynamo's, as good, median", share, at_most=_GPU_SHARE))
    ours = median(study.kept(name, OURS) for name in study.names())
    report.goal(Goal("promise kept, median", ours, at_least=KEPT))


def chosen_study(arguments: argparse.Namespace) -> Study:
    if arguments.other:
        few = (CLAIRVOYANT, PEAK, DYNAMO, OURS)
        return Study(others(arguments.other), 1, list(FRONTIER)[-2:], few)
    chosen = scenarios(arguments.trace, arguments.quick)
    if arguments.only:
        chosen = [s for s in chosen if arguments.only in s.name]
    if not arguments.quick:
        return Study(chosen, arguments.seeds, list(FRONTIER))
    chosen = [s for s in chosen if s.name.startswith("step")] or chosen[:1]
    return Study(chosen, 1, list(FRONTIER)[-1:])


def main() -> int:
    arguments = parse()
    study, report = chosen_study(arguments), Report(TITLE)
    study.run(arguments.jobs, arguments.runs)
    tables(study, report)
    if arguments.other:
        medians(study, report)
    else:
        goals(study, report)
    report.figure("seeds", study.seeds)
    report.note("of Dynamo's, as good: at the cheapest of its points that keeps what ours keeps")
    if arguments.trace is None and not arguments.other:
        report.note("no --trace: the conversations are left out")
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
