"""How soon is a peer seen that was published, and how soon after an etcd came back?

    python benchmarks/kvtransfer/directory.py [--quick] [--json FILE]

Publishers and watchers are different directories of one process, each with connections of its own.
The last table tells what a directory that has nothing to do costs an asyncio gRPC server in the
same process, and what an etcd client on a second asyncio loop would cost it; in processor time, so
that other work on the machine hardly changes it.
"""

import argparse
import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import grpc  # type: ignore[import-untyped]

from benchmarks.common.report import Report
from benchmarks.common.rounds import alternate, middle, ratio
from benchmarks.kvtransfer.etcd_server import EtcdServer, is_installed
from stafette.kvtransfer.directory.config import DirectoryConfig
from stafette.kvtransfer.directory.directory import Directory
from stafette.kvtransfer.directory.etcd.config import EtcdConfig
from stafette.kvtransfer.directory.records import PeerRecord
from stafette.kvtransfer.directory.registry import open_directory
from stafette.kvtransfer.directory.watches import Joined, Left, PeerEvent

RECORD = PeerRecord(1, bytes(600), {"role": "prefill"})  # the size of an agent's metadata
CALLS_AT_ONCE = 8
ALONE, DIRECTORY, SECOND_LOOP = "nothing", "an idle directory", "an idle asyncio client"
_TIMEOUT_S = 30.0
_POLL_S = 0.001

Opener = Callable[[], Directory]


@dataclass(frozen=True, slots=True)
class Size:
    publications: int
    peers: int
    rounds: int
    serving_s: float


class Seen:
    """When a watch told that a peer has joined, and who left."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self.left: list[str] = []
        self._changed = threading.Condition()

    def __call__(self, event: PeerEvent) -> None:
        now = time.perf_counter()
        with self._changed:
            match event:
                case Joined():
                    self.at[event.name] = now
                case Left():
                    self.left.append(event.name)
            self._changed.notify_all()

    def await_name(self, name: str) -> float:
        with self._changed:
            if not self._changed.wait_for(lambda: name in self.at, _TIMEOUT_S):
                raise RuntimeError(f"{name} was not seen within {_TIMEOUT_S:g} s")
        return self.at[name]


def publication(open_one: Opener, count: int) -> list[object]:
    """Return median and 99th percentile, in ms, of the call and of the time until it is seen."""
    calls, delays, seen = [], [], Seen()
    with open_one() as publisher, open_one() as watcher:
        watcher.watch(seen)
        watcher.list()
        for number in range(count):
            started = time.perf_counter()
            with publisher.publish(f"p{number}", RECORD):
                calls.append((time.perf_counter() - started) * 1e3)
                delays.append((seen.await_name(f"p{number}") - started) * 1e3)
    return [median(calls), _p99(calls), median(delays), _p99(delays)]


def restart(open_one: Opener, etcd: EtcdServer, peers: int, wiped: bool) -> list[object]:
    """Return s from etcd's first answer until all peers are there and a new one is seen."""
    seen = Seen()
    with open_one() as publisher, open_one() as watcher:
        for number in range(peers):
            publisher.publish(f"p{number}", RECORD)
        watcher.watch(seen)
        seen.await_name(f"p{peers - 1}")
        etcd.kill()
        if wiped:
            etcd.wipe()
        etcd.start()
        started = time.perf_counter()
        publisher.publish("new", RECORD)
        new_s = seen.await_name("new") - started
        _await(lambda: all(publisher.get(f"p{n}", fresh=True) for n in range(peers)))
        return [new_s, time.perf_counter() - started, len(seen.left)]


def beside(what: str, open_one: Opener, seconds: float) -> float:
    """Return µs of processor time per call of an asyncio gRPC server beside what idles."""
    with ExitStack() as stack:
        if what == DIRECTORY:
            directory = stack.enter_context(open_one())
            directory.publish("p", RECORD)
            directory.list()
        return asyncio.run(_serve(seconds, stack if what == SECOND_LOOP else None))


async def _serve(seconds: float, second_loop: ExitStack | None) -> float:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Echo(),))
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    if second_loop is not None:
        await asyncio.to_thread(second_loop.enter_context, _idle_client(target))
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_unary("/echo/echo")
        await call(b"")
        done, used, end = 0, time.process_time(), time.perf_counter() + seconds
        while time.perf_counter() < end:
            await asyncio.gather(*(call(bytes(100)) for _ in range(CALLS_AT_ONCE)))
            done += CALLS_AT_ONCE
        used = time.process_time() - used
    await server.stop(None)
    return used / done * 1e6


@contextmanager
def _idle_client(target: str) -> Iterator[None]:
    """Hold a gRPC channel on an asyncio loop in a thread, which makes one call and no more."""
    ready, over = threading.Event(), threading.Event()

    async def idle() -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            await channel.unary_unary("/echo/echo")(b"")
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(idle()), daemon=True)
    thread.start()
    ready.wait(_TIMEOUT_S)
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._echo)

    async def _echo(self, request: bytes, context: Any) -> bytes:
        return request


def measure(size: Size) -> Report:
    report = Report("The directory of peers")
    rows = [["memory", *publication(_opener("memory"), size.publications)]]
    if not is_installed():
        report.note("no etcd binary is installed: only the memory directory was measured")
        _tell_publications(report, rows)
        return report
    with TemporaryDirectory() as folder:
        etcd = EtcdServer(Path(folder))
        etcd.start()
        try:
            open_one = _opener("etcd", EtcdConfig(endpoints=(etcd.endpoint,)))
            rows.append(["etcd", *publication(open_one, size.publications)])
            _tell_publications(report, rows)
            _measure_etcd(report, open_one, etcd, size)
        finally:
            etcd.kill()
    return report


def _tell_publications(report: Report, rows: list[list[object]]) -> None:
    headers = ["backend", "publish p50", "publish p99", "seen p50", "seen p99"]
    report.table("From the call of publish, ms", headers, rows)


def _measure_etcd(report: Report, open_one: Opener, etcd: EtcdServer, size: Size) -> None:
    rows: list[list[object]] = [
        ["the same data", *restart(open_one, etcd, size.peers, wiped=False)],
        ["no data", *restart(open_one, etcd, size.peers, wiped=True)],
    ]
    headers = ["etcd has", "a new peer is seen", f"all {size.peers} are there", "seemed to leave"]
    report.table("After a kill, s from etcd's first answer", headers, rows)
    names = [ALONE, DIRECTORY, SECOND_LOOP]
    costs = alternate(names, size.rounds, lambda name, _: beside(name, open_one, size.serving_s))
    alone = middle(costs[ALONE])
    table = [[name, middle(costs[name]), ratio(middle(costs[name]), alone)] for name in names]
    report.table("An asyncio gRPC server", ["beside it", "CPU µs a call", "× alone"], table)


def _opener(backend: str, options: object = None) -> Opener:
    """Each opens directories of one cluster, and no two of them of the same."""
    return lambda: open_directory(backend, DirectoryConfig(), options)


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"it took longer than {_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100)[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer peers, fewer rounds")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    size = Size(100, 20, 2, 1.0) if arguments.quick else Size(1_000, 200, 5, 3.0)
    return measure(size).finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
