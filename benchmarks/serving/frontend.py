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

import psutil

from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import middle
from benchmarks.serving.measuring import GOALS, Running, measured

SERVER = Path(__file__).with_name("frontend_server.py")
NAMES = ("stafette", "fastapi", "asgi")


@contextmanager
def server(name: str, step_s: float) -> Iterator[Running]:
    """Run a contender."""
    command = [sys.executable, "-P", str(SERVER), name, str(step_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Running(int(process.stdout.readline()), [psutil.Process(process.pid)])
        finally:
            process.kill()


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
    found = measured(server, names, rounds, arguments.quick, report.note)
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
