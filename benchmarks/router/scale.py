"""How the router grows: up to 1,000 workers and 10 million blocks in one index.

    python benchmarks/router/scale.py [--quick] [--prefill-share 0.25] [--json FILE] [--csv FILE]
        [--png FILE]

Each point is a fresh process: the index is filled by events of 64 blocks, then churned by events of
one, then asked for placements of prompts of 8,192 tokens, with 4 requests under way on each worker.
Times are of the router's own CPU, so that a busy machine shows the same growth.
Block hashes are made up; hashing a prompt comes on top (benchmarks/kvtransfer/hashing.py). Exit
status 1 when a goal is missed.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from benchmarks.common.child import Child
from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import ratio
from benchmarks.router.curves import Panel, draw, write_csv

TITLE = "The router's growth"
WORKERS, QUICK_WORKERS = (10, 100, 1_000), (10, 1_000)
BLOCKS, QUICK_BLOCKS = (100_000, 1_000_000, 10_000_000), (100_000, 500_000)
ROUNDS = 3
_PATIENCE_S = 1_200.0
_COMMAND = (sys.executable, "-P", "-m", "benchmarks.router.scale_point")
SHOWN = (
    ("index_mib", "index MiB"),
    ("block_bytes", "bytes a block"),
    ("fill_blocks_s", "blocks/s, 64 an event"),
    ("churn_events_s", "one-block events/s"),
    ("place_p50_us", "place p50 µs"),
    ("place_p99_us", "place p99 µs"),
)

At = tuple[int, int]  # workers, blocks
Found = dict[At, dict[str, float]]


def measured(quick: bool, rounds: int, prefill_share: float) -> Found:
    """Return the medians of the rounds, point by point."""
    workers, blocks = (QUICK_WORKERS, QUICK_BLOCKS) if quick else (WORKERS, BLOCKS)
    points = [(w, b) for w in workers for b in blocks]
    told: dict[At, list[Mapping[str, float]]] = {point: [] for point in points}
    for _ in range(rounds):
        for point in points:
            told[point].append(_ask(point, quick, prefill_share))
            print(f"{point[0]:,} workers, {point[1]:,} blocks: done", file=sys.stderr)
    return {
        point: {name: median(one[name] for one in many) for name, _ in SHOWN}
        for point, many in told.items()
    }


def _ask(point: At, quick: bool, prefill_share: float) -> dict[str, float]:
    sizes = {"workers": point[0], "blocks": point[1], "prefill_share": prefill_share}
    counts = {"events": 10_000 if quick else 40_000, "requests": 200 if quick else 600}
    with tempfile.TemporaryDirectory() as logs:
        child = Child("router", _COMMAND, Path(logs) / "router.log")
        try:
            return child.ask({"ask": "measure", **sizes, **counts}, _PATIENCE_S, "measuring")
        finally:
            child.close()


def goals(found: Found, report: Report) -> None:
    workers = sorted({each for each, _ in found})
    blocks = sorted({each for _, each in found})
    least, most = found[workers[0], blocks[0]], found[workers[-1], blocks[-1]]
    where = f"{workers[-1]:,} workers, {blocks[-1] / 1e6:g} M blocks"
    few = found[workers[-1], blocks[0]]
    for name, value, bounds in (
        ("bytes a block", most["block_bytes"], {"at_most": 90.0}),
        ("placement p50, ms", most["place_p50_us"] / 1e3, {"at_most": 5.0}),
        ("placement p99, ms", most["place_p99_us"] / 1e3, {"at_most": 10.0}),
        (
            "placement p50, of that with the fewest blocks",
            ratio(most["place_p50_us"], few["place_p50_us"]),
            {"at_most": 2.0},
        ),
        (
            "one-block events, of the smallest point's rate",
            ratio(most["churn_events_s"], least["churn_events_s"]),
            {"at_least": 0.5},
        ),
    ):
        report.goal(Goal(f"{where}: {name}", value, **bounds))


def chart(path: str, found: Found) -> None:
    workers = sorted({each for each, _ in found})
    panels = [
        Panel(
            title,
            "blocks",
            title,
            {
                f"{each:,} workers": [(b, v[name]) for (w, b), v in found.items() if w == each]
                for each in workers
            },
            log_x=True,
            log_y=name.startswith(("index", "place")),
        )
        for name, title in SHOWN
    ]
    draw(path, TITLE, panels, columns=3)


def main() -> int:
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--quick", action="store_true", help="fewer points and blocks, one round")
    share = "of the workers, which compute prompts for the others; 8 workers a host then"
    parser.add_argument("--prefill-share", type=float, default=0.0, help=share)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--csv", metavar="FILE")
    parser.add_argument("--png", metavar="FILE")
    asked = parser.parse_args()
    rounds = asked.rounds or (1 if asked.quick else ROUNDS)
    found, report = measured(asked.quick, rounds, asked.prefill_share), Report(TITLE)
    headers = ["workers", "blocks", *(title for _, title in SHOWN)]
    rows = [[*point, *(each[name] for name, _ in SHOWN)] for point, each in found.items()]
    report.table(f"medians of {rounds} rounds", headers, rows)
    goals(found, report)
    if asked.csv:
        write_csv(asked.csv, headers, rows)
    if asked.png:
        chart(asked.png, found)
    return report.finish(asked.json)


if __name__ == "__main__":
    raise SystemExit(main())
