"""What does the whole way from client to worker and back cost? Beside Ray Serve's own streaming.

    python benchmarks/serving/overhead.py [--quick] [--json FILE] [--contenders stafette,ray]

Mock engines add one token to every answer in each step, so that only the way is measured; the
client counts bytes, in a process of its own.

stafette          client - frontend with its router - one gRPC stream - worker
stafette-tcp      the same with `service.stream: tcp`
stafette-2        the first with two frontends on one port
stafette-on-ray   the first as replicas of Ray Serve deployments
ray               client - Serve's proxy - ingress replica - streaming handle - engine replica
fastapi           client - FastAPI with the engine in its process: no way at all
canned            answers that are ready bytes: the client's own limit

CPU is that of all processes on the way; of Ray's, those of replicas and proxy.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import middle, ratio
from benchmarks.serving.measuring import (
    GOALS,
    LATENCY,
    PACED,
    TOKENS,
    NotStarted,
    Running,
    measured,
)

HERE = Path(__file__).parent
OURS, OVER_TCP, TWO = "stafette", "stafette-tcp", "stafette-2"
ON_RAY, RAY, FASTAPI, CANNED = "stafette-on-ray", "ray", "fastapi", "canned"
NAMES = (OURS, OVER_TCP, TWO, ON_RAY, RAY, FASTAPI, CANNED)
_END_S = 60.0


@contextmanager
def script(name: str, *arguments: object) -> Iterator[tuple[str, int]]:
    """Run one of our scripts until it is left; give the line that it says, and its process."""
    command = [sys.executable, "-P", str(HERE / name), *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            said = process.stdout.readline().strip()
            if not said:
                raise NotStarted(f"{name} ended before it served")
            yield said, process.pid
        finally:
            process.stdin.close()  # whoever has children of its own ends by that
            try:
                process.wait(_END_S if name == "ray_server.py" else 0)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def start(name: str, step_s: float) -> Iterator[Running]:
    with ExitStack() as stack:
        if name in (OURS, OVER_TCP, TWO):
            stream = "tcp" if name == OVER_TCP else "grpc"
            address, worker = stack.enter_context(script("step_worker.py", step_s, stream))
            said, front = stack.enter_context(script("step_front.py", address, stream))
            port, gossip = said.split()
            processes = [worker, front]
            if name == TWO:
                shared = script("step_front.py", address, stream, port, gossip)
                _, second = stack.enter_context(shared)
                processes.append(second)
            yield _running(port, processes)
        elif name in (RAY, ON_RAY):
            said, _ = stack.enter_context(script("ray_server.py", name, step_s))
            yield _running(**json.loads(said))
        else:
            own = ("canned_server.py",) if name == CANNED else ("frontend_server.py", name, step_s)
            port, server = stack.enter_context(script(*own))
            yield _running(port, [server])


def _running(port: int | str, pids: Sequence[int]) -> Running:
    return Running(int(port), [psutil.Process(pid) for pid in pids])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, without Ray")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--contenders", help=f"default: {','.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    default = (OURS, OVER_TCP, FASTAPI, CANNED) if arguments.quick else NAMES
    names = arguments.contenders.split(",") if arguments.contenders else default
    report = Report("From client to worker and back, on mock engines")
    rounds = 1 if arguments.quick else arguments.rounds
    found = measured(start, names, rounds, arguments.quick, report.note)
    found[PACED].pop(CANNED, None)  # nothing paces it
    rows = [[figure, *(middle(of.get(name, [])) for name in names)] for figure, of in found.items()]
    report.table("medians", ["", *names], rows)
    for figure, bound in GOALS:
        report.goal(Goal(figure, middle(found[figure].get(OURS, [])), **bound))
    for figure in (LATENCY, TOKENS):
        ours, rays = (middle(found[figure].get(name, [])) for name in (OURS, RAY))
        report.figure(f"{figure}: stafette / ray", ratio(ours, rays))
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
