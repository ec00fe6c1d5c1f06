"""stafette's transfers beside NIXL, Mooncake, gRPC and gloo, and beside what the machine can do.

    python benchmarks/kvtransfer/vs_peers.py [--quick] [--json FILE] [--png FILE]

Blocks of host memory are read out of another process's pool into a pool of ours; fresh random
blocks every time, every byte checked. The first full run installs the peers, each into an
environment of its own (minutes). Exit status 1 when a goal is missed.
"""

import argparse
from pathlib import Path

from benchmarks.common.chart import bars
from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import ratio
from benchmarks.engine.peers import DEFAULT_FOLDER
from benchmarks.kvtransfer.peers import lineup
from benchmarks.kvtransfer.peers.contest import Contest
from benchmarks.kvtransfer.peers.lineup import IPERF, MEMCPY, NIXL_TCP, OURS, SHM, TCP
from benchmarks.kvtransfer.peers.protocol import Run

TITLE = "Blocks read from another process on this host"
SECONDS, QUICK_SECONDS = 1.0, 0.2  # of one system's turn
ROUNDS, QUICK_ROUNDS = 5, 1
SIZES = {
    "4096 × 4 KiB": (4096, 4 << 10),
    "256 × 64 KiB": (256, 64 << 10),
    "64 × 1 MiB": (64, 1 << 20),
    "1 × 256 MiB": (1, 256 << 20),
    "1 × 4 KiB": (1, 4 << 10),
}
SMALL, BLOCKS, LARGE, LATENCY = "4096 × 4 KiB", "256 × 64 KiB", "1 × 256 MiB", "1 × 4 KiB"
QUICK_CASES = (SMALL, BLOCKS, LATENCY)

# Of whom, at what, beside whom, at least how many times as fast.
GOALS = (
    (SHM, SMALL, MEMCPY, 0.7),
    (SHM, BLOCKS, MEMCPY, 0.8),
    (SHM, LARGE, MEMCPY, 0.8),
    (TCP, SMALL, NIXL_TCP, 4.0),
    (TCP, BLOCKS, NIXL_TCP, 3.0),
    (TCP, LARGE, NIXL_TCP, 3.0),
    (TCP, BLOCKS, IPERF, 0.85),
    (TCP, LARGE, IPERF, 0.85),
)
LATENCY_GOALS_US = {SHM: 30.0, TCP: 100.0}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=TITLE)
    add = parser.add_argument
    add("--quick", action="store_true", help="under a minute: one round, only what is installed")
    add("--systems", help=f"default: {','.join(lineup.DEFAULT)}")
    add("--cases", help=f"of: {', '.join(SIZES)}; default: all")
    add("--rounds", type=int, help=f"default: {ROUNDS}, or {QUICK_ROUNDS} with --quick")
    add("--peers-dir", type=Path, default=DEFAULT_FOLDER, help="default: %(default)s")
    add("--json", metavar="FILE", help="write the results as JSON")
    add("--png", metavar="FILE", help="draw the results")
    return parser.parse_args()


def chosen_systems(arguments: argparse.Namespace) -> list[str]:
    if arguments.systems:
        return [name.strip() for name in arguments.systems.split(",")]
    return list(lineup.QUICK if arguments.quick else lineup.DEFAULT)


def chosen_cases(arguments: argparse.Namespace) -> dict[str, Run]:
    default = QUICK_CASES if arguments.quick else tuple(SIZES)
    names = [n.strip() for n in arguments.cases.split(",")] if arguments.cases else default
    unknown = [name for name in names if name not in SIZES]
    if unknown:
        raise SystemExit(f"--cases: {unknown[0]!r} is none of {', '.join(SIZES)}")
    seconds = QUICK_SECONDS if arguments.quick else SECONDS
    return {name: Run(*SIZES[name], seed=0, seconds=seconds) for name in names}


def tables(report: Report, contest: Contest, cases: dict[str, Run]) -> None:
    standings = contest.standings
    headers = ["case", *standings]
    speeds = [
        [label, *(standing.gb_per_s(case) for standing in standings.values())]
        for label, case in cases.items()
        if label != LATENCY
    ]
    report.table("GB/s, of the median list", headers, speeds)
    costs = [
        [label, *(standing.cpu_s_per_gb(case) for standing in standings.values())]
        for label, case in cases.items()
        if label != LATENCY
    ]
    report.table("CPU seconds per GB, both processes", headers, costs)
    if LATENCY in cases:
        found = {name: _micros(contest, name, cases[LATENCY]) for name in standings}
        found.pop(IPERF, None)  # a rate says nothing of one block
        report.table(f"{LATENCY}, µs, median", list(found), [list(found.values())])
    report.table("Of these, runs one by one", *_details(contest, cases))


def goals(report: Report, contest: Contest, cases: dict[str, Run]) -> None:
    """Judge the cases that were run; who is missing leaves a goal that is not measured."""

    def speed(name: str, label: str) -> float | None:
        standing = contest.standings.get(name)
        return standing.gb_per_s(cases[label]) if standing else None

    for name, label, other, least in GOALS:
        if label in cases:
            found = ratio(speed(name, label), speed(other, label))
            report.goal(Goal(f"{name} / {other}, {label}", found, at_least=least))
    for name, most in LATENCY_GOALS_US.items():
        if LATENCY in cases:
            found = _micros(contest, name, cases[LATENCY])
            report.goal(Goal(f"{name}, {LATENCY}, µs", found, at_most=most))


def draw(path: str, contest: Contest, cases: dict[str, Run]) -> None:
    labels = [label for label in cases if label != LATENCY]
    series = {}
    for name, standing in contest.standings.items():
        speeds = [standing.gb_per_s(cases[label]) for label in labels]
        series[name] = [speed and speed * 1e3 for speed in speeds]
    bars(path, TITLE, "MB/s", labels, series)


def measure(arguments: argparse.Namespace, report: Report) -> Contest:
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    cases, systems = chosen_cases(arguments), chosen_systems(arguments)
    entries = lineup.entries(systems, arguments.peers_dir, install=not arguments.quick)
    contest = Contest(entries, arguments.peers_dir / "logs")
    try:
        contest.start()
        contest.play(cases, rounds)
    finally:
        contest.close()
    tables(report, contest, cases)
    goals(report, contest, cases)
    for name, standing in contest.standings.items():
        if standing.lost:
            report.note(f"{name} is not measured: {standing.lost}")
        for note in sorted(standing.notes()):
            report.note(note)
    if arguments.png:
        draw(arguments.png, contest, cases)
    return contest


def main() -> int:
    arguments = parse()
    report = Report(TITLE)
    contest = measure(arguments, report)
    status = report.finish(arguments.json)
    lost = [name for name in OURS if name in contest.standings and contest.standings[name].lost]
    return 1 if lost else status


def _micros(contest: Contest, name: str, case: Run) -> float | None:
    standing = contest.standings.get(name)
    p50_s = standing.p50_s(case) if standing else None
    return p50_s and p50_s * 1e6


def _details(contest: Contest, cases: dict[str, Run]) -> tuple[list[str], list[list[object]]]:
    headers = ["case", "system", "best list, ms", "worst median, ms", "lists", "runs"]
    rows: list[list[object]] = []
    for label, case in cases.items():
        for name, standing in contest.standings.items():
            runs = standing.runs.get(case, [])
            if runs:
                best = min(run["best_s"] for run in runs)
                worst = max(run["p50_s"] for run in runs)
                lists = sum(run["iterations"] for run in runs)
                rows.append([label, name, best * 1e3, worst * 1e3, lists, len(runs)])
    return headers, rows


if __name__ == "__main__":
    raise SystemExit(main())
