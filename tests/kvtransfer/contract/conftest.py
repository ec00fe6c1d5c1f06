"""An agent here, its peers in processes of their own, for each transport that works here."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.kvtransfer.memory import SharedMemory
from stafette.kvtransfer.registry import NAMES

OWNER = Path(__file__).with_name("owner_process.py")
TOKEN = "the cluster's token"
MIB = 1 << 20
DEADLINE_S = 60.0

_spec = importlib.util.spec_from_file_location("owner_process", OWNER)
owner_process = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(owner_process)
content = owner_process.content


class OwnerFailed(Exception):
    """What a command of the owner's process raised: the class of the error, and its text."""


class OwnerProcess:
    def __init__(self, name: str, transport: str, **options) -> None:
        settings = {
            "name": name,
            "transport": transport,
            "token": TOKEN,
            "memory": "array" if transport == "process_vm" else "shared",
            "pool_bytes": 4 * MIB,
            "block_bytes": 4096,
            "seed": 1,
        }
        self.settings = settings | options
        self.process = subprocess.Popen(
            [sys.executable, str(OWNER), json.dumps(self.settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.metadata = bytes.fromhex(self._answer())

    def __call__(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        self.process.stdin.close()
        self.process.stdout.close()

    def _answer(self):
        answer, error = json.loads(self.process.stdout.readline())
        if error is not None:
            raise OwnerFailed(*error)
        return answer


@dataclass
class Reader:
    """The agent of this process, and the pool that it reads into."""

    agent: Agent
    pool: np.ndarray
    transport: str

    def accept(self, ticket: str):
        return self.agent.accept(bytes.fromhex(ticket))

    def read(self, into, source, lease, timeout_s=DEADLINE_S, **options):
        return self.agent.read(
            Extents.of("pool", into), Extents.of("pool", source), lease, timeout_s, **options
        )


class Cluster:
    """Starts processes and agents that know each other; ends them all."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        self._owners: list[OwnerProcess] = []
        self._readers: list[Reader] = []

    def owner(self, name: str = "owner", **options) -> OwnerProcess:
        owner = OwnerProcess(name, self.transport, **options)
        self._owners.append(owner)
        return owner

    def reader(self, pool_bytes: int = 4 * MIB, name: str = "reader", **options) -> Reader:
        config = {"token": TOKEN.encode(), "transports": (self.transport,)} | options
        agent = Agent(AgentConfig(name=name, **config))
        memory = SharedMemory("pool", pool_bytes)
        agent.register("pool", memory, block_bytes=min(4096, pool_bytes))
        reader = Reader(agent, memory.array, self.transport)
        self._readers.append(reader)
        return reader

    def pair(self, **options) -> tuple[OwnerProcess, Reader]:
        """Return an owner and a reader that knows it; options are the owner's."""
        owner = self.owner(**options)
        reader = self.reader(owner.settings["pool_bytes"])
        reader.agent.add_peer(owner.metadata)
        return owner, reader

    def close(self) -> None:
        for owner in self._owners:
            owner.kill()
        for reader in self._readers:
            reader.agent.close()


def _missing(transport: str) -> str:
    """Return why a transport cannot be tried here; empty: it can."""
    if transport == "torch_dist" and importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    if transport == "nixl" and importlib.util.find_spec("nixl") is None:
        return "nixl is not installed"
    if transport == "cuda_ipc":
        return "moves memory of GPUs: see its own tests"
    return ""


@pytest.fixture(scope="module", params=NAMES)
def transport(request) -> str:
    reason = _missing(request.param)
    if reason:
        pytest.skip(reason)
    return request.param


@pytest.fixture
def cluster(transport) -> Iterator[Cluster]:
    cluster = Cluster(transport)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def lasting(transport) -> Iterator[tuple[OwnerProcess, Reader]]:
    """A pair that many tests use, none of which breaks it."""
    cluster = Cluster(transport)
    yield cluster.pair()
    cluster.close()


@pytest.fixture(scope="session")
def pool_content():
    return content


@pytest.fixture(scope="session")
def short_leases():
    return LeaseConfig(ttl_s=0.3, max_life_s=30.0)
