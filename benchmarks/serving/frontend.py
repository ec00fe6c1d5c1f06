"""What does the API itself cost? Mock engines, so that nothing else is measured.

    python benchmarks/serving/frontend.py [--quick] [--json FILE] [--contenders stafette,fastapi]

Each contender runs in a process of its own, with an engine that adds one token to every answer in
each step; the client uses the other core. stafette is the API as it is; fastapi a bare FastAPI
application with StreamingResponse; asgi the least that uvicorn can be made to do. Latency is that
of a streamed answer of one token, from the request's first byte to the answer's last; the engine's
share of it is one turn of the event loop. CPU is the server's process, all of it.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psutil
import uvloop

from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import middle, turns
from benchmarks.serving.load import one_by_one, together

SERVER = Path(__file__).with_name("frontend_server.py")
NAMES = ("stafette", "fastapi", "asgi")
CLIENTS = 32
MARK = b" tok"
PACED_STEP_S = 0.02
LATENCY = "1 token, one at a time, p50 ms"
REQUESTS = "1-token requests/s at 32 concurrent"
TOKENS = "tokens/s at 32 × 200"
PACED = "CPU µs per token, paced"
Found = dict[str, float]
_WARM = 20


@contextmanager
def server(name: str, step_s: float) -> Iterator[tuple[int, psutil.Process]]:
    """Run a contender; give its port and its process."""
    command = [sys.executable, "-P", str(SERVER), name, str(step_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            uvloop.run(one_by_one(port, MARK, _WARM, 4))
            yield port, psutil.Process(process.pid)
        finally:
            process.kill()


def latency(name: str, quick: bool) -> Found:
    """Answers of one token, one at a time."""
    with server(name, 0.0) as (port, _):
        answers = uvloop.run(one_by_one(port, MARK, 300 if quick else 2_000, 1))
    return {LATENCY: median(answer.total_s for answer in answers) * 1e3}


def requests(name: str, quick: bool) -> Found:
    """As many answers of one token as there can be."""
    with server(name, 0.0) as (port, process):
        each = 20 if quick else 200
        count, took, cpu = _loaded(port, process, each, 1)
    return {REQUESTS: count / took, "CPU µs per such request": cpu / count * 1e6}


def tokens(name: str, quick: bool) -> Found:
    """As many tokens as there can be. Nothing comes together: each step is a write of its own."""
    with server(name, 0.0) as (port, process):
        count, took, cpu = _loaded(port, process, 2 if quick else 10, 200)
    return {TOKENS: count / took, "CPU µs per such token": cpu / count * 1e6}


def paced(name: str, quick: bool) -> Found:
    """Tokens that come every 20 ms, as from an engine."""
    with server(name, PACED_STEP_S) as (port, process):
        count, _, cpu = _loaded(port, process, 1, 50 if quick else 150)
    return {PACED: cpu / count * 1e6}


def _loaded(
    port: int, process: psutil.Process, each: int, max_tokens: int
) -> tuple[int, float, float]:
    """Return tokens, seconds, and the server's CPU seconds; all answers must be whole."""
    before = process.cpu_times()
    answers, took = uvloop.run(together(port, MARK, CLIENTS, each, max_tokens))
    after = process.cpu_times()
    short = [answer for answer in answers if answer.tokens != max_tokens]
    assert not short, f"{len(short)} answers lack tokens: {short[0]}"
    spent = after.user + after.system - before.user - before.system
    return len(answers) * max_tokens, took, spent


MEASURES = (latency, requests, tokens, paced)
GOALS = (
    (LATENCY, {"at_most": 2.0}),
    (REQUESTS, {"at_least": 1_200.0}),
    (TOKENS, {"at_least": 100_000.0}),
    (PACED, {"at_most": 80.0}),
)


def measured(names: list[str], rounds: int, quick: bool) -> dict[str, dict[str, list[float]]]:
    """Return what was found, by figure and contender; who begins changes from round to round."""
    found: dict[str, dict[str, list[float]]] = {}
    for measure in MEASURES:
        for _, name in turns(names, rounds):
            for figure, value in measure(name, quick).items():
                found.setdefault(figure, {}).setdefault(name, []).append(value)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--contenders", default=",".join(NAMES))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    names = arguments.contenders.split(",")
    rounds = 1 if arguments.quick else arguments.rounds
    report = Report("The API alone, on mock engines")
    if "fastapi" in names and not _has_fastapi():
        names.remove("fastapi")
        report.note("fastapi is not installed: pip install fastapi")
    found = measured(names, rounds, arguments.quick)
    rows = [[figure, *(middle(of[name]) for name in names)] for figure, of in found.items()]
    report.table("medians", ["", *names], rows)
    for figure, bound in GOALS:
        report.goal(Goal(figure, middle(found[figure].get("stafette", [])), **bound))
    return report.finish(arguments.json)


def _has_fastapi() -> bool:
    try:
        import fastapi  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
