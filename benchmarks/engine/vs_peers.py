"""stafette beside vLLM-CPU and llama.cpp: the same model, the same prompts, taking turns.

    python benchmarks/engine/vs_peers.py [--quick] [--fallback] [--json FILE] [--png FILE]

The first full run installs the peers, each into an environment of its own (minutes). SmolLM2-135M,
random prompts, every answer to its full length. Exit status 1 when a goal is missed.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common.chart import bars
from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import ratio
from benchmarks.engine import peers, quality
from benchmarks.engine.contenders.protocol import Case
from benchmarks.engine.contest import Contest, Entry

TITLE = "stafette beside its peers, SmolLM2-135M on CPU"
CASES = {
    "1 sequence": Case(1, 128, 64),
    "16 sequences": Case(16, 128, 64),
    "64 sequences": Case(64, 128, 64),
    "8 long": Case(8, 2048, 64),
}
QUICK_CASES = ("1 sequence", "16 sequences")
QUICK_TOKENS = quality.WINDOW  # fewer say little of perplexity
LONGEST = 2304  # tokens of a sequence
OURS, FALLBACK, VLLM, LLAMA = "stafette", "stafette torch", "vllm", "llama.cpp"

_FLAGS = {"max_model_len": LONGEST, "max_num_seqs": 64, "kv_cache_memory_bytes": 1 << 30}
_NO_NATIVE = {"runner": "torch", "attention_backend": "torch"}  # as where no compiler is
_VLLM_START_S = 900.0  # it compiles
_MIB = 1 << 20


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=TITLE)
    add = parser.add_argument
    add("--quick", action="store_true", help="under a minute: one round, two cases, no vLLM")
    add("--fallback", action="store_true", help="stafette without its native library, too")
    add("--contenders", default=f"{OURS},{VLLM},{LLAMA}", help="default: %(default)s")
    add("--cases", help=f"of: {', '.join(CASES)}; default: all")
    add("--rounds", type=int, help="default: 5, or 1 with --quick")
    add("--peers-dir", type=Path, default=peers.DEFAULT_FOLDER, help="default: %(default)s")
    add("--json", metavar="FILE", help="write the results as JSON")
    add("--png", metavar="FILE", help="draw the results")
    return parser.parse_args()


def own_entry(name: str, flags: Mapping[str, object]) -> Entry:
    script = ["-P", "-m", "benchmarks.engine.contenders.stafette"]
    return Entry(name, [sys.executable, *script, json.dumps({**_FLAGS, **flags})])


def vllm_entry(folder: Path, install: bool, report: Report) -> Entry:
    peer = peers.vllm_cpu(folder, install, LONGEST)
    for note in peer.notes:
        report.note(note)
    script = ["-P", "-m", "benchmarks.engine.contenders.vllm_cpu", *peer.arguments]
    return Entry(VLLM, [str(peer.python), *script], peer.env, _VLLM_START_S, starts_slowly=True)


def llama_entry(folder: Path, install: bool) -> Entry:
    peer = peers.llama_cpp(folder, install)
    script = ["-P", "-m", "benchmarks.engine.contenders.llama_cpp", *peer.arguments]
    return Entry(LLAMA, [str(peer.python), *script], peer.env, holds_model=False)


def lineup(arguments: argparse.Namespace, report: Report) -> list[Entry]:
    """Return who takes part; a peer that cannot is noted."""
    wanted = [name.strip() for name in arguments.contenders.split(",")]
    folder, install = arguments.peers_dir, not arguments.quick
    makers = {
        OURS: lambda: own_entry(OURS, {}),
        FALLBACK: lambda: own_entry(FALLBACK, _NO_NATIVE),
        VLLM: lambda: vllm_entry(folder, install, report),
        LLAMA: lambda: llama_entry(folder, install),
    }
    if arguments.fallback and FALLBACK not in wanted:
        wanted.append(FALLBACK)
    if arguments.quick and VLLM in wanted:
        wanted.remove(VLLM)
        report.note("vllm skipped: its start alone takes longer than --quick may")
    entries = []
    for name in wanted:
        if name not in makers:
            raise SystemExit(f"--contenders: {name!r} is none of {', '.join(makers)}")
        try:
            entries.append(makers[name]())
        except peers.PeerMissing as missing:
            report.note(f"{name} is missing: {missing}")
    return entries


def chosen_cases(arguments: argparse.Namespace) -> dict[str, Case]:
    default = QUICK_CASES if arguments.quick else tuple(CASES)
    names = [n.strip() for n in arguments.cases.split(",")] if arguments.cases else default
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise SystemExit(f"--cases: {unknown[0]!r} is none of {', '.join(CASES)}")
    return {name: CASES[name] for name in names}


def speed(contest: Contest, name: str, case_name: str) -> float | None:
    """Return total tokens a second, prompt and output, end to end."""
    standing = contest.standings.get(name)
    seconds = standing.seconds(case_name) if standing else None
    return CASES[case_name].total_tokens / seconds if seconds else None


def tables(report: Report, contest: Contest, cases: dict[str, Case]) -> None:
    names = list(contest.standings)
    others = [name for name in names if name != OURS]
    ratios = [f"{OURS} / {name}" for name in others]
    rows = []
    for case in cases:
        mine = speed(contest, OURS, case)
        shown = [speed(contest, name, case) for name in names]
        rows.append([case, *shown, *(ratio(mine, speed(contest, name, case)) for name in others)])
    report.table("Total tok/s, prompt and output, end to end", ["case", *names, *ratios], rows)
    report.table("Of these, runs one by one", *details(contest, cases))
    starts = [
        [name, standing.start_s, standing.memory_bytes and standing.memory_bytes / _MIB]
        for name, standing in contest.standings.items()
    ]
    report.table("Start", ["contender", "to first token, s", "memory, MiB"], starts)


def details(contest: Contest, cases: dict[str, Case]) -> tuple[list[str], list[list[object]]]:
    headers = ["case", "contender", "output tok/s", "first token, ms", "best s", "worst s", "runs"]
    rows: list[list[object]] = []
    for case_name, case in cases.items():
        for name, standing in contest.standings.items():
            times = [run["seconds"] for run in standing.runs.get(case_name, [])]
            if not times:
                continue
            output = ratio(case.sequences * case.output_tokens, standing.seconds(case_name))
            first = standing.ttft_s(case_name)
            shown = [output, first and first * 1e3, min(times), max(times), len(times)]
            rows.append([case_name, name, *shown])
    return headers, rows


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy with another process."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def busy_neighbour(
    contest: Contest, cases: dict[str, Case], rounds: int
) -> dict[str, float | None]:
    """Return the share of its quiet speed that stafette keeps beside a busy process."""
    shares = {}
    for case_name in [name for name in QUICK_CASES if name in cases]:
        with busy_core():
            for number in range(rounds):
                contest.run(OURS, f"{case_name}, busy", cases[case_name], 100 + number)
        standing = contest.standings[OURS]
        quiet = standing.seconds(case_name)
        shares[case_name] = ratio(quiet, standing.seconds(f"{case_name}, busy"))
    return shares


def goals(report: Report, contest: Contest, cases: dict[str, Case]) -> None:
    def against(name: str, other: str, case: str, least: float) -> None:
        if case in cases:
            found = ratio(speed(contest, name, case), speed(contest, other, case))
            report.goal(Goal(f"{name} / {other}, {case}", found, at_least=least))

    against(OURS, LLAMA, "1 sequence", 2.2)
    for case in ("16 sequences", "64 sequences"):
        against(OURS, VLLM, case, 2.5)
        if FALLBACK in contest.standings:
            against(FALLBACK, VLLM, case, 0.9)
    if OURS in contest.standings:
        start = contest.standings[OURS].start_s
        report.goal(Goal("start to first token, s", start, at_most=3.0))


def measure(arguments: argparse.Namespace, report: Report) -> Contest:
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    cases = chosen_cases(arguments)
    contest = Contest(lineup(arguments, report), arguments.peers_dir / "logs")
    try:
        contest.start(min(rounds, 3))
        contest.play(cases, rounds)
        shares = busy_neighbour(contest, cases, rounds) if OURS in contest.running else {}
    finally:
        contest.close()
    tables(report, contest, cases)
    goals(report, contest, cases)
    for case, share in shares.items():
        name = f"share of its speed beside a busy process, {case}"
        report.goal(Goal(name, share, at_least=0.5))
    if OURS in contest.standings:
        quality.add_to(report, quality.measure(QUICK_TOKENS if arguments.quick else None))
    for standing in contest.standings.values():
        if standing.lost:
            report.note(standing.lost)
    if arguments.png:
        series = {
            name: [speed(contest, name, case) for case in cases] for name in contest.standings
        }
        bars(arguments.png, "SmolLM2-135M on CPU", "total tok/s", list(cases), series)
    return contest


def main() -> int:
    arguments = parse()
    report = Report(TITLE)
    contest = measure(arguments, report)
    status = report.finish(arguments.json)
    return 1 if OURS in contest.standings and contest.standings[OURS].lost else status


if __name__ == "__main__":
    raise SystemExit(main())
