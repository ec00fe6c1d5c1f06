"""How long does a small question to a peer take? Goal: below 0.3 ms, half of the time.

    python benchmarks/kvtransfer/control.py [--quick] [--json FILE]

The peer is another process. Beside the control plane, over the Unix socket and over TCP:
a hundred bytes sent back and forth by plain Python over a bare socket, which costs what it must.
"""

import argparse
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median, quantiles

from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import alternate, middle
from stafette.kvtransfer.control.auth import Identity
from stafette.kvtransfer.control.client import ControlClient
from stafette.kvtransfer.control.config import ControlConfig
from stafette.kvtransfer.control.endpoint import NAME
from stafette.kvtransfer.control.server import ControlServer
from stafette.kvtransfer.transport import PeerInfo

GOAL_P50_US = 300.0
CALLERS = 4
HERE, ELSEWHERE = "here", "elsewhere"
UNIX, TCP, BARE_TCP = "Unix", "TCP", "a bare TCP socket"
_CONFIG = ControlConfig(token=os.urandom(32))
_QUESTION = ["lease", 7, bytes(64)]
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Size:
    rounds: int
    calls: int


def serve(told: Connection, config: ControlConfig) -> None:
    """Be the peer, until the parent hangs up."""
    memory = os.memfd_create("benchmark")
    operations = {
        "echo": lambda peer, payload: payload,
        "memory": lambda peer, payload: (None, [memory]),
    }

    def identity() -> Identity:
        endpoints: dict[str, object] = {NAME: server.endpoint.pack()}
        return Identity(PeerInfo("owner", 1, HERE, endpoints))

    server = ControlServer(config, identity, operations, lambda *stream: stream[1].close())
    with socket.create_server(("127.0.0.1", 0)) as bare:
        threading.Thread(target=_echo_bare, args=(bare,), daemon=True).start()
        told.send((server.endpoint.pack(), bare.getsockname()))
        told.poll(None)
    server.close()


def _echo_bare(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while data := connection.recv(65_536):
                connection.sendall(data)


@contextmanager
def peer() -> Iterator[tuple[PeerInfo, tuple[str, int]]]:
    """Yield how the peer is reached: as a peer, and at its bare socket."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=serve, args=(far, _CONFIG))
    process.start()
    far.close()
    try:
        endpoint, bare = near.recv()
        yield PeerInfo("owner", 1, HERE, {NAME: endpoint}), bare
    finally:
        near.close()
        process.join(_TIMEOUT_S)
        process.kill()


def client_of(info: PeerInfo, host_id: str) -> ControlClient:
    return ControlClient(_CONFIG, lambda: Identity(PeerInfo("reader", 1, host_id)), info)


def timed_us(run: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        run()
        times.append((time.perf_counter() - started) * 1e6)
    return times


def connecting_us(info: PeerInfo, host_id: str) -> float:
    with closing(client_of(info, host_id)) as client:
        started = time.perf_counter()
        client.connect(_TIMEOUT_S)
        return (time.perf_counter() - started) * 1e6


def calls_per_second(client: ControlClient, count: int) -> float:
    """Return what several threads reach together on one connection."""
    with ThreadPoolExecutor(CALLERS) as pool:
        started = time.perf_counter()
        list(pool.map(lambda _: client.call("echo", _QUESTION, _TIMEOUT_S), range(count)))
        return count / (time.perf_counter() - started)


def measure(size: Size) -> Report:
    report = Report(f"Small questions to a peer, medians of {size.rounds} rounds")
    with peer() as (info, bare_address), ExitStack() as stack:
        unix = stack.enter_context(closing(client_of(info, HERE)))
        tcp = stack.enter_context(closing(client_of(info, ELSEWHERE)))
        bare = stack.enter_context(socket.create_connection(bare_address))
        bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asked: dict[str, Callable[[], object]] = {
            UNIX: lambda: unix.call("echo", _QUESTION, _TIMEOUT_S),
            TCP: lambda: tcp.call("echo", _QUESTION, _TIMEOUT_S),
            BARE_TCP: lambda: _ask_bare(bare),
        }
        _report_latency(report, asked, size)
        fds = timed_us(lambda: _take_memory(unix), size.calls // 10)
        report.figure("an answer with a file descriptor, p50 µs", median(fds))
        for name, host_id, client in ((UNIX, HERE, unix), (TCP, ELSEWHERE, tcp)):
            rate = middle([calls_per_second(client, size.calls) for _ in range(size.rounds)])
            report.figure(f"{name}: {CALLERS} threads on one connection, calls/s", rate)
            opened = [connecting_us(info, host_id) for _ in range(10 * size.rounds)]
            report.figure(f"{name}: connecting, with the handshake, p50 µs", median(opened))
    return report


def _report_latency(report: Report, asked: dict[str, Callable[[], object]], size: Size) -> None:
    for run in asked.values():
        timed_us(run, size.calls // 10)
    slow: dict[str, list[float]] = {name: [] for name in asked}

    def run_round(name: str, _: int) -> float:
        times = timed_us(asked[name], size.calls)
        slow[name].append(quantiles(times, n=100)[-1])
        return median(times)

    found = alternate(list(asked), size.rounds, run_round)
    rows = [[name, middle(found[name]), middle(slow[name])] for name in asked]
    report.table("One caller, µs", ["way", "p50", "p99"], rows)
    for name in (UNIX, TCP):
        report.goal(Goal(f"{name}, p50 µs", middle(found[name]), at_most=GOAL_P50_US))


def _ask_bare(connection: socket.socket) -> bytes:
    connection.sendall(bytes(100))
    return connection.recv(65_536)


def _take_memory(client: ControlClient) -> None:
    for fd in client.call_fds("memory", None, _TIMEOUT_S)[1]:
        os.close(fd)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and calls")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    size = Size(3, 500) if arguments.quick else Size(9, 5_000)
    return measure(size).finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
