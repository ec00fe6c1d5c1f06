"""Transfers under mischief: processes killed and stopped, connections cut, blocks overwritten.

    python benchmarks/kvtransfer/soak.py [--quick] [--minutes N] [--json FILE]

One process reads from and writes to three owners, two of them through a proxy, by many threads with
random lists, deadlines, cancels and checksums. Meanwhile owners are killed and live again, are
stopped for a while, connections are cut. Every byte of every transfer that says it is done is
compared, and every byte where one has failed is watched. Exit status 1 when a goal is missed: no
wrong byte, no leaked lease, no hang past a deadline.
"""

import argparse
import gc
import os
import random
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.common.report import Goal, Report
from benchmarks.kvtransfer.soaking.client import SHARE_BYTES, Client, Route
from benchmarks.kvtransfer.soaking.content import BLOCK_BYTES
from benchmarks.kvtransfer.soaking.owner import POOL, TOKEN
from benchmarks.kvtransfer.soaking.process import OwnerProcess
from benchmarks.kvtransfer.soaking.proxy import Proxy
from benchmarks.kvtransfer.soaking.tally import Tally
from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.kvtransfer.memory import SharedMemory

TITLE = "Transfers while processes die and connections are cut"
MINUTES, QUICK_MINUTES = 5.0, 0.4
NUM_CLIENTS = 6
TTL_S = 2.0
_END_S = 60.0


class Mischief(threading.Thread):
    """Every now and then something breaks."""

    def __init__(self, routes: list[Route], seed: int) -> None:
        super().__init__(name="mischief", daemon=True)
        self.stopping = threading.Event()
        self.done: dict[str, int] = {"killed": 0, "stopped": 0}
        self._routes = routes
        self._random = random.Random(seed)

    def run(self) -> None:
        while not self.stopping.wait(self._random.uniform(0.2, 1.0)):
            route, chance = self._random.choice(self._routes), self._random.random()
            if chance < 0.2:
                route.owner.restart()
                self.done["killed"] += 1
            elif chance < 0.4:
                route.owner.stop(self._random.choice((0.1, 0.5, 1.5)))
                self.done["stopped"] += 1
            elif route.proxy is not None:
                route.proxy.cut(self._random)


def num_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def run(minutes: float, seed: int, report: Report) -> None:
    tally = Tally()
    with tempfile.TemporaryDirectory() as logs:
        routes = [
            Route(
                OwnerProcess(f"owner-{i}", TTL_S, Path(logs) / f"{i}.log"), Proxy() if i else None
            )
            for i in range(3)
        ]
        try:
            soak(minutes, seed, routes, tally, report)
        finally:
            for route in routes:
                route.owner.close()
                if route.proxy is not None:
                    route.proxy.close()


def soak(minutes: float, seed: int, routes: list[Route], tally: Tally, report: Report) -> None:
    memory = SharedMemory(POOL, NUM_CLIENTS * SHARE_BYTES)
    lease = LeaseConfig(ttl_s=TTL_S, max_life_s=30.0)
    agent = Agent(AgentConfig(name="driver", token=TOKEN, lease=lease, call_timeout_s=1.0))
    agent.register(POOL, memory, block_bytes=BLOCK_BYTES)
    shares = memory.array.view("u8").reshape(NUM_CLIENTS, -1)
    clients = [Client(i, agent, shares[i], routes, tally) for i in range(NUM_CLIENTS)]
    mischief = Mischief(routes, seed)
    began = time.monotonic()
    for thread in (*clients, mischief):
        thread.start()
    time.sleep(minutes * 60 / 2)
    middle = (num_fds(), threading.active_count())
    time.sleep(minutes * 60 / 2)
    end = (num_fds(), threading.active_count())
    stop([mischief, *clients], tally)
    leaked = leaked_leases(routes, agent)
    tell(report, tally, time.monotonic() - began)
    report.figure("file descriptors, threads at half time", middle)
    report.figure("file descriptors, threads at the end", end)
    report.figure(
        "mischief", {**mischief.done, "cut": sum(r.proxy.num_cut for r in routes if r.proxy)}
    )
    judge(report, tally, leaked)
    report.goal(Goal("transfers not settled at the end", agent.stats().unsettled, at_most=0))
    agent.close()
    gc.collect()


def stop(threads: list[Mischief | Client], tally: Tally) -> None:
    for thread in threads:
        thread.stopping.set()
    for thread in threads:
        thread.join(_END_S)
        if thread.is_alive():
            tally.note(tally.hangs, f"thread {thread.name}")


def leaked_leases(routes: list[Route], agent: Agent) -> int:
    """Return how many leases live on when their time has been over for long."""
    deadline = time.monotonic() + 3 * TTL_S + 5
    while time.monotonic() < deadline:
        living = [route.owner.ask("living") for route in routes]
        counts = [number for pair in living for number in pair]
        left: int = sum(counts) + agent.stats().leases.living
        if not left:
            return 0
        time.sleep(0.2)
    return left


def tell(report: Report, tally: Tally, seconds: float) -> None:
    report.figure("seconds", round(seconds, 1))
    report.figure("done", dict(tally.done))
    report.figure("GB moved and compared", round(tally.nbytes / 1e9, 3))
    report.figure("cancelled", tally.cancelled)
    report.table("Failed, each by a typed error", ["error", "times"], sorted(tally.failed.items()))


def judge(report: Report, tally: Tally, leaked: int) -> None:
    report.goal(Goal("transfers done", sum(tally.done.values()), at_least=1))
    report.goal(Goal("wrong bytes, places where they were seen", len(tally.wrong), at_most=0))
    report.goal(Goal("leases leaked", leaked, at_most=0))
    report.goal(Goal("hangs past a deadline", len(tally.hangs), at_most=0))
    report.goal(Goal("errors of no known class", len(tally.surprises), at_most=0))
    for text in (*tally.wrong[:5], *tally.hangs[:5], *tally.surprises[:5]):
        report.note(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--quick", action="store_true", help="half a minute")
    parser.add_argument("--minutes", type=float, help=f"default: {MINUTES:g}")
    parser.add_argument("--seed", type=int, default=1, help="of the mischief")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    arguments = parser.parse_args()
    report = Report(TITLE)
    minutes = arguments.minutes or (QUICK_MINUTES if arguments.quick else MINUTES)
    run(minutes, arguments.seed, report)
    return report.finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
