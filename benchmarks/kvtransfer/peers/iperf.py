"""The limit of one TCP stream over loopback: iperf3, or a plain loop where that is missing."""

import json
import multiprocessing
import resource
import socket
import subprocess
import time
from typing import Any

from benchmarks.kvtransfer.peers.protocol import Answer, Contender, Run

_HOST = "127.0.0.1"
_LEAST_S = 1.0  # a shorter run is mostly the stream's start
_PATIENCE_S = 20.0
_PIECE_BYTES = 1 << 17  # as iperf3 has it


class Iperf(Contender):
    """Runs server and client for each question; the rate has nothing to do with blocks."""

    def __init__(self, program: str) -> None:
        self._program = program

    def measure(self, run: Run) -> Answer:
        port = _free_port()
        server = [self._program, "--server", "--one-off", "--forceflush", "--port", str(port)]
        with subprocess.Popen(server, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                while b"listening" not in (line := process.stdout.readline()):
                    if not line:
                        raise RuntimeError("iperf3's server ended before it listened")
                end = self._client(port, round(max(_LEAST_S, run.seconds)))
            finally:
                process.kill()
        received, busy = end["sum_received"], end["cpu_utilization_percent"]
        cpu_s = (busy["host_total"] + busy["remote_total"]) / 100 * received["seconds"]
        return _answer(run, received["bytes"], received["seconds"], cpu_s)

    def close(self) -> None:
        return

    def _client(self, port: int, seconds: int) -> dict[str, Any]:
        command = [self._program, "--client", _HOST, "--port", str(port), "--time", str(seconds)]
        done = subprocess.run(
            [*command, "--json"], capture_output=True, timeout=seconds + _PATIENCE_S
        )
        told = json.loads(done.stdout)
        if "error" in told:
            raise RuntimeError(f"iperf3: {told['error']}")
        end: dict[str, Any] = told["end"]
        return end


class PlainStream(Contender):
    """One process sends, this one receives, both in a loop of Python."""

    def measure(self, run: Run) -> Answer:
        before, seconds = _cpu_s(), max(_LEAST_S, run.seconds)
        with socket.create_server((_HOST, 0)) as listener:
            listener.settimeout(_PATIENCE_S)
            port = listener.getsockname()[1]
            sender = multiprocessing.get_context("spawn").Process(
                target=_send, args=(port, seconds)
            )
            sender.start()
            connection = listener.accept()[0]
        began, piece, nbytes = time.perf_counter(), bytearray(_PIECE_BYTES), 0
        with connection:
            while got := connection.recv_into(piece):
                nbytes += got
        lasted = time.perf_counter() - began
        sender.join(_PATIENCE_S)
        return _answer(run, nbytes, lasted, _cpu_s() - before, "iperf3 is missing: a plain stream")

    def close(self) -> None:
        return


def contender(option: str) -> Contender:
    """Return the stream through iperf3, whose path is the option; without one, ours."""
    return Iperf(option) if option else PlainStream()


def _answer(run: Run, nbytes: int, seconds: float, cpu_s: float, note: str = "") -> Answer:
    each = run.nbytes * seconds / nbytes
    return Answer(each, each, 1, cpu_s / (nbytes / 1e9), note)


def _send(port: int, seconds: float) -> None:
    end, piece = time.monotonic() + seconds, bytes(_PIECE_BYTES)
    with socket.create_connection((_HOST, port), _PATIENCE_S) as connection:
        while time.monotonic() < end:
            connection.sendall(piece)


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
