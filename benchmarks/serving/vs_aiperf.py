"""Does `stafette bench` find what aiperf, NVIDIA's client, finds on the same server?

    python benchmarks/serving/vs_aiperf.py [--quick] [--rounds N] [--levels N ...] [--url URL]

Chat completions as a stream and whole, at 1, 4 and 16 requests at a time; both clients in turn,
each in processes of its own. The server sends a first token after 300 ms and one every 30 ms, or is
that of --url. Its pace is fixed, so whatever else runs on the machine can only take time: of
several rounds each client's best throughput and times count. Only of the gaps, which a late first
token makes shorter, it is the median.

aiperf's figures are its own summary's. Its records, read and summed up by `stafette bench`, must
give the same: that shows the definitions, on any machine; two clients agree only where there is
time for both. The first run installs aiperf into an environment of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import middle, ratio, turns
from benchmarks.engine.peers import DEFAULT_FOLDER, PeerMissing, environment_of, safetensors
from benchmarks.serving.aiperf import PACKAGE
from benchmarks.serving.overhead import script

BUILTIN, AIPERF, REREAD = "builtin", "aiperf", "aiperf's records"
LEVELS, QUICK_LEVELS = (1, 4, 16), (4,)
AGREEMENT = 0.05
SAME = 0.005  # aiperf rounds what it writes
_FIRST_S, _STEP_S = 0.3, 0.03
_ISL, _OSL = 128, 32
_RUN_S = 900.0

# What a figure is called: where stafette has it, and where aiperf.
FIGURES: Mapping[str, tuple[tuple[str, ...], tuple[str, str]]] = {
    "requests/s": (("requests_s",), ("request_throughput", "avg")),
    "output tokens/s": (("output_tokens_s",), ("output_token_throughput", "avg")),
    "TTFT mean, ms": (("ttft_ms", "mean"), ("time_to_first_token", "avg")),
    "TTFT p50, ms": (("ttft_ms", "p50"), ("time_to_first_token", "p50")),
    "TPOT mean, ms": (("tpot_ms", "mean"), ("inter_token_latency", "avg")),
    "TPOT p50, ms": (("tpot_ms", "p50"), ("inter_token_latency", "p50")),
    "ITL mean, ms": (("itl_ms", "mean"), ("inter_chunk_latency", "avg")),
    "E2E mean, ms": (("e2e_ms", "mean"), ("request_latency", "avg")),
    "E2E p50, ms": (("e2e_ms", "p50"), ("request_latency", "p50")),
}
Key = tuple[bool, int]  # streaming, how many at a time


@dataclass(frozen=True, slots=True)
class Setting:
    url: str
    model: str
    path: str  # where the aiperf command is
    tokenizer: Path
    requests: int  # for each that is asked at a time

    def measure(self, name: str, key: Key) -> dict[str, dict[str, float]]:
        """Return the figures by who found them."""
        stream, level = key
        with tempfile.TemporaryDirectory() as folder:
            words: list[object] = [sys.executable, "-P", "-m", "stafette", "bench", "run"]
            words += [
                "--no-report",
                "--name",
                "x",
                "--output-dir",
                folder,
                "--endpoint",
                f"x={self.url}",
            ]
            words += ["--model", self.model, "--concurrencies", level, "--backend", name]
            words += ["--requests", max(20, self.requests * level), "--warmup", 4]
            words += ["--isl", _ISL, "--std", 0, "--osl", _OSL]
            words += [] if stream else ["--no-stream"]
            words += ["--tokenizer", self.tokenizer] if name == AIPERF else []
            _call([str(word) for word in words], self.path)
            level_folder = Path(folder, "x", "x", f"c{level}")
            summary = json.loads((level_folder / "summary.json").read_text())["summary"]
            own = {figure: _at(summary, ours) for figure, (ours, _) in FIGURES.items()}
            if name == BUILTIN:
                return {BUILTIN: _known(own)}
            told = json.loads((level_folder / "aiperf/profile_export_aiperf.json").read_text())
        theirs = {figure: _at(told, place) for figure, (_, place) in FIGURES.items()}
        return {AIPERF: _known(theirs), REREAD: _known(own)}


def _call(words: list[str], path: str) -> None:
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=_RUN_S)
    if done.returncode:
        raise PeerMissing(f"{' '.join(words)}: {done.stderr[-600:]}")


def _at(told: Any, place: tuple[str, ...]) -> float | None:
    for name in place:
        told = (told or {}).get(name)
    return told if told is None else float(told)


def _known(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}


@contextmanager
def _server(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with script("paced_server.py", _FIRST_S, _STEP_S) as (port, _):
        yield f"http://127.0.0.1:{port}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one level, if aiperf is installed")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--levels", type=int, nargs="+", help="requests at a time (default: 1 4 16)"
    )
    parser.add_argument("--url", help="of a server that runs (default: one is started)")
    parser.add_argument("--model", default="paced")
    parser.add_argument("--peers-dir", type=Path, default=DEFAULT_FOLDER)
    arguments = parser.parse_args()
    report = Report("One server, found by stafette bench and by aiperf")
    levels = arguments.levels or (QUICK_LEVELS if arguments.quick else LEVELS)
    streams = (True,) if arguments.quick else (True, False)
    keys = [(stream, level) for stream in streams for level in levels]
    rounds = 1 if arguments.quick else arguments.rounds
    found: dict[tuple[Key, str], list[dict[str, float]]] = {}
    try:
        install = not arguments.quick
        home = environment_of(arguments.peers_dir / "aiperf", PACKAGE, install)
        tokenizer = safetensors(arguments.peers_dir / "smollm2-bf16")
        with _server(arguments.url) as url:
            count = 5 if arguments.quick else 10
            setting = Setting(url, arguments.model, str(home / "bin"), tokenizer, count)
            for key in keys:
                for _, name in turns((BUILTIN, AIPERF), rounds):
                    for who, figures in setting.measure(name, key).items():
                        found.setdefault((key, who), []).append(figures)
    except PeerMissing as error:
        report.note(str(error))
    _tell(report, found, keys)
    return report.finish(arguments.json)


def _tell(
    report: Report, found: Mapping[tuple[Key, str], list[dict[str, float]]], keys: list[Key]
) -> None:
    rows, apart, reread = [], list[float](), list[float]()
    for key in keys:
        for figure in FIGURES:
            values = {
                who: _best(
                    figure, [run[figure] for run in found.get((key, who), []) if figure in run]
                )
                for who in (BUILTIN, AIPERF, REREAD)
            }
            if values[AIPERF] is None:
                continue
            quotient = ratio(values[BUILTIN], values[AIPERF])
            rows.append([_shown(key), figure, *values.values(), quotient])
            apart += [] if quotient is None else [abs(quotient - 1)]
            same = ratio(values[REREAD], values[AIPERF])
            reread += [] if same is None else [abs(same - 1)]
    headers = ["load", "figure", BUILTIN, AIPERF, REREAD, "builtin / aiperf"]
    report.table("best of the rounds; of TPOT and ITL the median", headers, rows)
    worst, furthest = max(apart, default=None), max(reread, default=None)
    report.goal(Goal("farthest figure of the two clients, share", worst, at_most=AGREEMENT))
    report.goal(Goal("farthest figure of aiperf's records, reread", furthest, at_most=SAME))


def _best(figure: str, values: Sequence[float]) -> float | None:
    if figure.startswith(("TPOT", "ITL")):
        return middle(values)
    return (min if figure.endswith("ms") else max)(values, default=None)


def _shown(key: Key) -> str:
    stream, level = key
    return f"{level} at a time, {'streamed' if stream else 'whole'}"


if __name__ == "__main__":
    raise SystemExit(main())
