"""The router's index and placement beside Dynamo's: look-ups, events, memory, whole decisions.

    python benchmarks/router/micro.py [--quick] [--json FILE] [--png FILE]

Dynamo's is the Rust RadixTree and the SelectionService of its Python wheel, installed by the first
full run into an environment of its own. Both get the same blocks; every answer is checked. Each
measurement is a fresh process, the contenders take turns, and medians are shown. Exit status 1 when
a goal is missed; without Dynamo the goals beside it are not measured.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from benchmarks.common.chart import bars
from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import ratio
from benchmarks.engine.peers import DEFAULT_FOLDER
from benchmarks.router.lineup import DYNAMO, OURS, Field

TITLE = "The router's index beside Dynamo's"
WORKERS, LENGTHS = (8, 64, 512), (64, 512, 2048)
RUNS = (1, 64)  # blocks of an event
PROMPTS = (1_024, 8_192, 32_768)  # tokens
ENTRIES, QUICK_ENTRIES = 1_000_000, 200_000
ROUNDS, QUICK_ROUNDS = 3, 1

Answers = Mapping[str, Mapping[str, float]]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=TITLE)
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer entries, one round, installs nothing")
    add("--rounds", type=int)
    add("--peers-dir", type=Path, default=DEFAULT_FOLDER)
    add("--json", metavar="FILE")
    add("--png", metavar="FILE")
    return parser.parse_args()


class Micro:
    def __init__(self, field: Field, report: Report, rounds: int, entries: int) -> None:
        self.field, self.report = field, report
        self.rounds, self.entries = rounds, entries
        self.look_ups: dict[str, Answers] = {}

    def run(self) -> None:
        self._look_ups()
        self._events()
        self._memory()
        self._placements()

    def _ask(self, ask: str, **question: int) -> Answers:
        return self.field.ask(self.rounds, {"ask": ask, **question})

    def _look_ups(self) -> None:
        for workers in WORKERS:
            for length in LENGTHS:
                sizes = {"workers": workers, "length": length, "entries": self.entries}
                answers = self._ask("look_up", **sizes, count=2_000)
                self.look_ups[f"{workers} workers, {length} blocks"] = answers
        for what, title in (("match", "with the result per worker"), ("raw", "without")):
            self._table(f"Look-ups, µs, {title}", f"{what}_us", f"{what}_p99_us")
            ratios = [_beside(a, f"{what}_us", less=True) for a in self.look_ups.values()]
            known = [value for value in ratios if value is not None]
            least, middle = (min(known), median(known)) if known else (None, None)
            self.report.goal(Goal(f"look-ups {title}, at every point, ×", least, at_least=2.0))
            self.report.goal(Goal(f"look-ups {title}, median, ×", middle, at_least=4.0))

    def _table(self, title: str, p50: str, p99: str) -> None:
        rows: list[list[object]] = []
        for point, answers in self.look_ups.items():
            ours, theirs = (answers.get(name, {}) for name in (OURS, DYNAMO))
            cells = [ours.get(p50), theirs.get(p50), _beside(answers, p50, less=True)]
            rows.append([point, *cells, ours.get(p99), theirs.get(p99)])
        headers = ["", OURS, DYNAMO, "× faster", f"{OURS} p99", f"{DYNAMO} p99"]
        self.report.table(title, headers, rows)

    def _events(self) -> None:
        rows: list[list[object]] = []
        for run in RUNS:
            blocks = min(self.entries, 60_000 if run == 1 else 1_000_000)
            answers = self._ask("apply", workers=8, per_event=run, blocks=blocks)
            for what in ("full", "applied", "removed"):
                times = _beside(answers, f"{what}_per_s", less=False)
                rates = [
                    _times(answers.get(name, {}).get(f"{what}_per_s"), run / 1e3)
                    for name in (OURS, DYNAMO)
                ]
                rows.append([f"{run} a time, {what}", *rates, times])
                if what == "full":
                    name = f"events of {run} blocks, made and applied, ×"
                    self.report.goal(Goal(name, times, at_least=1.0))
        headers = ["blocks", OURS, DYNAMO, "× faster"]
        self.report.table("Events, thousand blocks a second", headers, rows)

    def _memory(self) -> None:
        answers = self._ask("memory", workers=8, blocks=self.entries // 2, owners=4)
        rows: list[list[object]] = []
        for what, title in (("block", "a block"), ("owner", "each further worker with it")):
            both = [answers.get(name, {}).get(f"{what}_bytes") for name in (OURS, DYNAMO)]
            share = ratio(*both)
            rows.append([title, *both, share])
            self.report.goal(Goal(f"bytes for {title}, of Dynamo's", share, at_most=1.5))
        self.report.table("Memory, bytes", ["", OURS, DYNAMO, "of Dynamo's"], rows)

    def _placements(self) -> None:
        rows: list[list[object]] = []
        for tokens in PROMPTS:
            sizes = {"tokens": tokens, "entries": self.entries // 4}
            answers = self._ask("place", workers=8, **sizes, count=300)
            both = [answers.get(name, {}).get("place_us") for name in (OURS, DYNAMO)]
            times = _beside(answers, "place_us", less=True)
            rows.append([f"{tokens:,} tokens", *both, times])
            name = f"placement of {tokens:,} tokens, ×"
            self.report.goal(Goal(name, times, at_least=2.0))
        title = "From a list of token ids to a worker, 8 workers, µs"
        self.report.table(title, ["", OURS, DYNAMO, "× faster"], rows)


def _beside(answers: Answers, what: str, less: bool) -> float | None:
    ours, theirs = (answers.get(name, {}).get(what) for name in (OURS, DYNAMO))
    return ratio(theirs, ours) if less else ratio(ours, theirs)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def main() -> int:
    arguments = parse()
    report = Report(TITLE)
    field = Field(arguments.peers_dir, install=not arguments.quick)
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    micro = Micro(field, report, rounds, QUICK_ENTRIES if arguments.quick else ENTRIES)
    micro.run()
    if field.missing:
        report.note(f"{DYNAMO} is not measured: {field.missing}")
    if arguments.png:
        series = {
            name: [answers.get(name, {}).get("match_us") for answers in micro.look_ups.values()]
            for name in (OURS, DYNAMO)
        }
        labels = [point.replace(" workers, ", " × ") for point in micro.look_ups]
        bars(arguments.png, TITLE, "µs a look-up", labels, series)
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
