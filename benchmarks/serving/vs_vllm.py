"""stafette's servers beside vLLM's own, on this machine's CPU, as aiperf finds them.

    python benchmarks/serving/vs_vllm.py [--quick] [--json FILE] [--rounds N]

The embedded model, chat completions as a stream, prompts of 256 tokens, answers of 64, at 1, 4 and
16 requests at a time. Each server has the machine for itself, in turn. `stafette` is a fleet on Ray
as `stafette serve` starts it: one worker that does everything with two threads, or a prefill and a
decode worker with one each. The first run installs vLLM and aiperf, each into an environment of its
own (minutes). --quick asks a single engine (`stafette serve --local`) some few times, if aiperf is
installed: it tells whether all is in order, and no more.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common.report import Report
from benchmarks.common.rounds import middle, ratio, turns
from benchmarks.engine.peers import DEFAULT_FOLDER, PeerMissing, vllm_cpu
from benchmarks.serving.aiperf import MODEL, Aiperf, Found

AGGREGATED, APART, VLLM, LOCAL = "stafette", "stafette P/D", "vLLM", "stafette --local"
NAMES, QUICK_NAMES = (AGGREGATED, APART, VLLM), (LOCAL,)
LEVELS, QUICK_LEVELS = (1, 4, 16), (4,)
MAX_MODEL_LEN = 2048
POOLS = {
    AGGREGATED: "{aggregated: {num_cpus: 2}}",
    APART: "{prefill: {num_cpus: 1}, decode: {num_cpus: 1}}",
}
LAPTOP = Path(__file__).parents[2] / "examples/laptop.yaml"
_START_S = 600.0
_END_S = 120.0


@contextmanager
def serving(name: str, folder: Path, install: bool) -> Iterator[str]:
    """Give the URL of a server that is ready, until it is left."""
    port = _free_port()
    if name == VLLM:
        peer = vllm_cpu(folder, install, MAX_MODEL_LEN)
        command = [str(peer.python), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", peer.arguments[0], "--served-model-name", MODEL]
        command += ["--port", str(port), "--max-model-len", str(MAX_MODEL_LEN)]
        environment: Mapping[str, str] = peer.env
    elif name == LOCAL:
        command = [sys.executable, "-P", "-m", "stafette", "serve", "--local", "--port", str(port)]
        command += ["--max-model-len", str(MAX_MODEL_LEN), "--num-kv-blocks", "2048"]
        environment = {}
    else:
        settings = {"pools": POOLS[name], "frontend.port": port}
        settings |= {"engine.max_model_len": MAX_MODEL_LEN, "engine.num_kv_blocks": 2048}
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-P", "-m", "stafette", "serve", str(LAPTOP)]
        command, environment = [*command, "--address", "local", *sets], {}
    with _running(command, environment) as process:
        url = f"http://127.0.0.1:{port}"
        _await_ready(process, f"{url}/health", name)
        yield url


@contextmanager
def _running(
    command: list[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=os.environ | dict(environment), stdout=log, stderr=log
        )
        try:
            yield process
        except NotReady as error:
            log.seek(0)
            tail = log.read()[-2_000:].decode(errors="replace")
            raise PeerMissing(f"{error}: {tail}") from None
        finally:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class NotReady(Exception):
    pass


def _await_ready(process: subprocess.Popen[bytes], url: str, name: str) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise NotReady(f"{name} was not ready")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="what is installed; one level")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peers-dir", type=Path, default=DEFAULT_FOLDER)
    arguments = parser.parse_args()
    report = Report("Servers of one model on this CPU, by aiperf")
    levels = QUICK_LEVELS if arguments.quick else LEVELS
    found: dict[tuple[str, int], list[Found]] = {}
    try:
        aiperf = Aiperf.of(arguments.peers_dir, install=not arguments.quick)
        names = QUICK_NAMES if arguments.quick else NAMES
        for _, name in turns(names, 1 if arguments.quick else arguments.rounds):
            with serving(name, arguments.peers_dir, not arguments.quick) as url:
                if not arguments.quick:
                    aiperf.measure(url, levels[0], 4)  # warm
                for level in levels:
                    count = 8 if arguments.quick else max(16, 6 * level)
                    found.setdefault((name, level), []).append(aiperf.measure(url, level, count))
    except PeerMissing as error:
        report.note(str(error))
    _tell(report, found, levels)
    return report.finish(arguments.json)


def _tell(
    report: Report, found: Mapping[tuple[str, int], list[Found]], levels: tuple[int, ...]
) -> None:
    rows = [
        [level, name, *(middle([run[key] for run in runs]) for key in Aiperf.FIGURES)]
        for (name, level), runs in sorted(found.items(), key=lambda item: item[0][1])
    ]
    report.table("medians", ["at a time", "server", *Aiperf.FIGURES], rows)
    for level in levels if found.keys() >= {(VLLM, level) for level in levels} else ():
        for name in (AGGREGATED, APART):
            ours, theirs = (
                middle([run["requests/s"] for run in found.get((each, level), [])])
                for each in (name, VLLM)
            )
            report.figure(f"requests/s at {level}: {name} / {VLLM}", ratio(ours, theirs))


if __name__ == "__main__":
    raise SystemExit(main())
