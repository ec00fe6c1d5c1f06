"""What the tiers find of a trace, by policy, size and admission, and how fast blocks move.

    python benchmarks/kvtransfer/tiers.py [--quick] [--trace FILE] [--folder DIR] [--json FILE]

The trace is a file in Mooncake's form, or made up when there is none. Hit rates are shares of all
blocks of all prompts. Exit status 1 when a goal is missed.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.common.report import Goal, Report
from benchmarks.kvtransfer import tiers_speed
from benchmarks.kvtransfer.tiers_live import replay_store
from benchmarks.kvtransfer.tiers_replay import Setting, TieredReplay, replay_tiers
from benchmarks.kvtransfer.trace_replay import (
    Trace,
    read_trace,
    replay,
    replay_clairvoyant,
    replay_without_end,
    synthetic_trace,
)
from stafette.kvtransfer.tiers.admission import ADMISSIONS
from stafette.kvtransfer.tiers.cache import BlockCache
from stafette.kvtransfer.tiers.registry import DEFAULT_POLICY, POLICIES, make_policy

TITLE = "Tiers: what they find, and how fast they are"
TRACE = Path(__file__).parents[2].parent / "shared" / "traces" / "mooncake_conversation.jsonl"
TRACE_PERCENT = 36.6  # what a cache without end finds of that trace
QUICK_PROMPTS = 2_500
SIZES = (1_000, 4_000, 16_000, 32_000, 64_000)
QUICK_SIZES = (1_000, 4_000, 16_000)
TIERS = ((1_000, 2_000), (1_000, 4_000), (4_000, 4_000), (4_000, 8_000), (4_000, 16_000))
QUICK_TIERS = ((1_000, 2_000), (1_000, 6_000))
LIVE, QUICK_LIVE = (4_000, 16_000), (1_000, 6_000)
LEAST_OF_BEST = 0.9  # what finds out by itself may cost
LEAST_LIVE = 0.97  # of what the books say


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=TITLE)
    add = parser.add_argument
    add("--quick", action="store_true", help="under a minute: the trace's beginning, fewer sizes")
    add("--trace", type=Path, help=f"default: {TRACE.name} beside the repository, or a made-up one")
    add("--folder", type=Path, help="where the disk tier lies (default: a temporary folder)")
    add("--json", metavar="FILE", help="write the results as JSON")
    return parser.parse_args()


def chosen_trace(arguments: argparse.Namespace, report: Report) -> Trace:
    limit = QUICK_PROMPTS if arguments.quick else None
    path = arguments.trace or (TRACE if TRACE.exists() else None)
    if path is None:
        report.note(f"{TRACE.name} is not beside the repository: the trace is made up")
        return synthetic_trace(limit or 4 * QUICK_PROMPTS)
    return read_trace(path, limit)


def policies(report: Report, trace: Trace, sizes: tuple[int, ...]) -> None:
    """Compare the eviction policies on one tier."""
    rows, least = [], float("inf")
    for size in sizes:
        found = {
            name: replay(trace, BlockCache(size, make_policy(name, size))).percent
            for name in POLICIES
        }
        best = replay_clairvoyant(trace, size).percent
        rows.append([size, *found.values(), best])
        least = min(least, found[DEFAULT_POLICY] - found["lru"])
    headers = ["blocks", *POLICIES, "clairvoyant"]
    report.table("One tier, % of blocks found, by policy", headers, rows)
    name = f"{DEFAULT_POLICY} above lru, points, at every size"
    report.goal(Goal(name, least, at_least=0.0))


def admissions(report: Report, trace: Trace, sizes: tuple[tuple[int, int], ...]) -> None:
    """Compare what is written to disk."""
    rows: list[list[object]] = []
    least = float("inf")
    for host, disk in sizes:
        found = {name: replay_tiers(trace, Setting(host, disk, name)) for name in ADMISSIONS}
        plain = replay_tiers(trace, Setting(host, disk, "always", "lru", "lru"))
        rows.append([f"{host:,} + {disk:,}", *_cells(plain), *map(_share, found.values())])
        best = max(each.percent for each in found.values())
        least = min(least, found["adaptive"].percent / best)
    headers = ["host + disk blocks", "lru, always", "of that host"]
    headers += [f"{name}: found / written" for name in ADMISSIONS]
    report.table(f"Two tiers, % of blocks, policy {DEFAULT_POLICY} by admission", headers, rows)
    goal = Goal(
        "adaptive admission / the best of all, at every size", least, at_least=LEAST_OF_BEST
    )
    report.goal(goal)


def live(report: Report, trace: Trace, sizes: tuple[int, int], folder: Path) -> None:
    """Let the store itself, threads and files and all, replay the trace."""
    setting = Setting(*sizes, "adaptive")
    books, found = replay_tiers(trace, setting), replay_store(trace, setting, folder)
    headers = ["host + disk blocks", "books", "store", "of that host", "prompts/s"]
    shown = f"{sizes[0]:,} + {sizes[1]:,}"
    row = [shown, books.percent, found.percent, found.host_percent, found.prompts_per_s]
    report.table("The store itself, % of blocks found", headers, [row])
    report.goal(Goal("store / books", found.percent / books.percent, at_least=LEAST_LIVE))


def _cells(found: TieredReplay) -> list[object]:
    return [found.percent, found.host_percent]


def _share(found: TieredReplay) -> str:
    return f"{found.percent:.1f} / {found.written_percent:.0f}"


def measure(arguments: argparse.Namespace, report: Report, folder: Path) -> None:
    trace, quick = chosen_trace(arguments, report), arguments.quick
    bound = replay_without_end(trace)
    report.figure("prompts", len(trace))
    report.figure("blocks", bound.blocks)
    report.figure("found by a cache without end, %", bound.percent)
    whole = not quick and arguments.trace is None and TRACE.exists()
    percent = bound.percent if whole else None
    report.goal(Goal("a cache without end finds, %", percent, at_least=TRACE_PERCENT))
    policies(report, trace, QUICK_SIZES if quick else SIZES)
    admissions(report, trace, QUICK_TIERS if quick else TIERS)
    live(report, trace, QUICK_LIVE if quick else LIVE, folder / "live")
    tiers_speed.measure(report, folder / "speed", quick)


def main() -> int:
    arguments = parse()
    report = Report(TITLE)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(arguments, report, Path(folder))
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
