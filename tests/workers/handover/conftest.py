"""Engines in processes of their own, which hand over KV to each other."""

import importlib.util
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from stafette.workers.async_engine import AsyncEngine
from stafette.workers.config import EngineConfig
from stafette.workers.handover.handover import Handover
from stafette.workers.native import library

PROCESS = Path(__file__).with_name("engine_process.py")
PATIENCE_S = 120.0
FLAGS = {
    "max_num_seqs": 8,
    "max_model_len": 1024,
    "num_kv_blocks": 256,
    "max_num_batched_tokens": 64,  # so that a prompt is computed in several chunks
    "num_threads": 1,
}


class Refused(Exception):
    """What a command of the engine's process raised."""


class Pending:
    """The answer to a command, later."""

    def __init__(self) -> None:
        self._told: queue.Queue[dict] = queue.Queue()

    def put(self, told: dict) -> None:
        self._told.put(told)

    def get(self) -> Any:
        told = self._told.get(timeout=PATIENCE_S)
        if "error" in told:
            raise Refused(told["error"])
        return told["result"]


class EngineProcess:
    def __init__(self, name: str, transports=("shm", "tcp"), **settings) -> None:
        self.name = name
        flags = FLAGS | settings.pop("flags", {})
        told = {"name": name, "transports": transports, "flags": flags, **settings}
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(PROCESS), json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._numbers = count(1)
        self._pending = {0: Pending()}
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def metadata(self) -> str:
        if not hasattr(self, "_metadata"):
            self._metadata = self._pending[0].get()
        return self._metadata

    def ask(self, op: str, **arguments) -> Pending:
        number = next(self._numbers)
        answer = self._pending[number] = Pending()
        command = json.dumps({"id": number, "op": op, **arguments})
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return answer

    def __call__(self, op: str, **arguments):
        return self.ask(op, **arguments).get()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def close(self) -> int:
        """End it as it should end; return its exit status."""
        self.process.stdin.close()
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._listener.join(PATIENCE_S)
            self.process.stdout.close()

    def _listen(self) -> None:
        for line in self.process.stdout:
            told = json.loads(line)
            self._pending[told["id"]].put(told)


_spec = importlib.util.spec_from_file_location("rig", Path(__file__).with_name("rig.py"))
_rig = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_rig)


@pytest.fixture(scope="session")
def rig():
    return _rig


def _need_exact_logits() -> None:
    """Answers are compared to the last token, which only the native runner's logits allow."""
    reason = library.why_not()
    if reason is not None or library.best_isa() == "scalar":
        pytest.skip(reason or "without AVX2 the native runner does not serve")


@pytest.fixture
async def make(rig):
    """Make (handover, connector), by default a shelf, of an engine with these flags."""
    _need_exact_logits()
    made: list[Handover] = []

    async def make(connector=None, by_hand: bool = False, **flags):
        engine = await AsyncEngine.start(EngineConfig(**rig.FLAGS | flags))
        connector = connector or rig.Shelf(by_hand)
        made.append(await Handover.start(engine, connector))
        return made[-1], connector

    yield make
    for handover in made:
        await handover.close()
        if handover.engine.is_alive:
            assert await rig.idle(handover) == 0
        await handover.engine.close()


def wait_until(condition, what: str = "it") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def until():
    return wait_until


def introduce(*engines: EngineProcess) -> None:
    """Let each engine know those before it, which learn of it when it connects."""
    for number, one in enumerate(engines):
        for other in engines[:number]:
            other("add_peer", metadata=one.metadata)


@pytest.fixture
def start() -> Iterator:
    """Start engines that a test may kill."""
    _need_exact_logits()
    started: list[EngineProcess] = []

    def start(name: str, **settings) -> EngineProcess:
        started.append(EngineProcess(name, **settings))
        return started[-1]

    yield start
    for engine in started:
        if engine.process.poll() is None:
            assert engine.close() == 0
        else:
            engine.process.stdin.close()
            engine.process.stdout.close()


@pytest.fixture(scope="session")
def engines() -> Iterator[dict[str, EngineProcess]]:
    """Return an engine that computes prompts, and two that answer: one for each transport."""
    _need_exact_logits()
    names = {"prefill": ("shm", "tcp"), "shm": ("shm",), "tcp": ("tcp",)}
    engines = {name: EngineProcess(name, transports) for name, transports in names.items()}
    for transport in ("shm", "tcp"):
        introduce(engines["prefill"], engines[transport])
    yield engines
    assert [engine.close() for engine in engines.values()] == [0, 0, 0]


@pytest.fixture(params=["shm", "tcp"])
def pair(request, engines) -> tuple[EngineProcess, EngineProcess]:
    """Return (prefill, decode), which many tests use and none of them breaks."""
    return engines["prefill"], engines[request.param]


@pytest.fixture(scope="session")
def know():
    return introduce


@pytest.fixture(scope="session")
def make_process():
    return EngineProcess
