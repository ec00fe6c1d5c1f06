"""An owner and a reader in one process: real ledger, real memory, a gate and a control by hand."""

import ctypes
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.buffers import FileMemory, Shape, region_of
from stafette.kvtransfer.control.host import host_id
from stafette.kvtransfer.errors import AccessDenied, LeaseEnded, PeerLost, StaleBlocks
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.ledger import Ledger
from stafette.kvtransfer.memory import SharedMemory
from stafette.kvtransfer.native import moving
from stafette.kvtransfer.strict import pack, unpack
from stafette.kvtransfer.transport import Claim, Grant, PeerInfo, ReadJob, Surroundings
from stafette.kvtransfer.transports.process_vm import ProcessVmTransport
from stafette.kvtransfer.transports.same_host.config import SameHostConfig
from stafette.kvtransfer.transports.shm import ShmTransport

MIB = 1 << 20
EPOCH = 7
DEADLINE_S = 30.0
TOKEN = b"the cluster's token"
OWNER = Path(__file__).with_name("owner_process.py")
KINDS = {"shm": ShmTransport, "process_vm": ProcessVmTransport}


@cache
def some_bytes(nbytes: int) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(1).bytes(nbytes), np.uint8)


class FakeClaim(Claim):
    def __init__(self, ledger, region, grant):
        self.region = region
        self._ledger = ledger
        self._grant = grant

    def check(self):
        now = self._ledger.generations(self.region.name)[self._grant.blocks]
        stale = self._grant.blocks[now != self._grant.generations]
        if len(stale):
            raise StaleBlocks("owner", self.region.name, tuple(stale.tolist()))


class FakeGate:
    """Keeps the rules of leases: they live until they are struck out, for a region and blocks."""

    def __init__(self, ledger):
        self._ledger = ledger
        self._grants = {}  # lease id -> (region, grant)
        self._ids = itertools.count(1000)

    def grant(self, region, blocks) -> Grant:
        info, lease_id = region.info, next(self._ids)
        numbers = np.unique(np.asarray(blocks, np.int64))
        generations = self._ledger.generations(info.name)[numbers]
        grant = Grant(lease_id, EPOCH, lease_id % 64, info, numbers, generations)
        self._grants[lease_id] = region, grant
        self._ledger.write(grant.slot, lease_id)
        return grant

    def end(self, grant):
        del self._grants[grant.lease_id]
        self._ledger.strike(grant.slot)

    @contextmanager
    def claim(self, peer, lease_id, extents):
        if lease_id not in self._grants:
            raise LeaseEnded(lease_id, "the owner took it back")
        region, grant = self._grants[lease_id]
        touched = extents.blocks(region.info.block_bytes)
        if extents.region != region.name or not np.isin(touched, grant.blocks).all():
            raise AccessDenied("owner", "blocks", "the lease does not cover them")
        claim = FakeClaim(self._ledger, region, grant)
        claim.check()
        yield claim


class FakeControl:
    """Asks the owner in this process; what is said passes through msgpack as on the way."""

    def __init__(self, operations):
        self.operations = dict(operations)
        self.asked = []
        self.before = lambda operation: None  # may block, or raise
        self.lost = False

    def call(self, operation, payload, timeout_s):
        return self._ask(operation, payload)

    def call_fds(self, operation, payload, timeout_s):
        handed = self._ask(operation, payload)
        return handed.answer, list(handed.fds)

    def _ask(self, operation, payload):
        self.asked.append(operation)
        self.before(operation)
        if self.lost:
            raise PeerLost("owner", "the connection broke")
        said = unpack(pack(payload), 1 << 26)
        return self.operations[operation](PeerInfo("reader", 1, host_id()), said)


class FakeJob(ReadJob):
    def __init__(self, local, into, grant, source, verify=False):
        self.local, self.into = local, into
        self.remote, self.source, self.grant = grant.region, source, grant
        self.deadline = time.monotonic() + DEADLINE_S
        self.verify = verify
        self.stop = ctypes.c_int32(0)
        self.moved = 0
        self.on_advance = lambda job: None
        self.finished_by = None
        self.error = None
        self._over = threading.Event()

    def advance(self, nbytes):
        self.moved += nbytes
        self.on_advance(self)

    def finish(self, error=None):
        assert not self._over.is_set(), "a job finishes once"
        self.error = error
        self.finished_by = threading.current_thread()
        self._over.set()

    def wait(self):
        """Return when it is over; raise its error."""
        assert self._over.wait(DEADLINE_S)
        if self.error is not None:
            raise self.error

    @property
    def over(self) -> bool:
        return self._over.is_set()


class World:
    """One transport at both ends. `memory` is what the owner offers, `pool` where it is read to."""

    def __init__(self, kind="shm", native=True, nbytes=4 * MIB, block_bytes=4096, **options):
        self.ledger = Ledger(EPOCH, 64)
        self.gate = FakeGate(self.ledger)
        around = Surroundings("owner", EPOCH, self.gate, self.ledger)
        self.owner = KINDS[kind](around, native=native)
        self.reader = KINDS[kind](around, SameHostConfig(**options), native=native)
        self._inodes = set()
        self.memory = self.make_memory(nbytes)
        self.theirs = self.bytes_of(self.memory)
        self.theirs[:] = some_bytes(nbytes)
        self.region = self.register("kv", self.memory, block_bytes)
        self.pool = np.zeros(nbytes, np.uint8)
        self.local = region_of(self.pool, Shape("pool", block_bytes, 0))
        self.control = FakeControl(self.owner.operations())
        self.peer = PeerInfo("owner", EPOCH, host_id(), {kind: self.owner.endpoint()})
        self.link = self.reader.connect(self.peer, self.control)

    @staticmethod
    def bytes_of(memory):
        return memory.array if isinstance(memory, SharedMemory) else memory

    def register(self, name, memory, block_bytes=4096, generation=1):
        region = region_of(memory, Shape(name, block_bytes, generation))
        self.ledger.add_region(name, region.info.num_blocks)
        fds = [self.ledger.memory.fd, self.ledger.generations_memory(name).fd, region.fd]
        fds += [memory.fd] if region.shared is not None else []
        self._inodes |= {os.fstat(fd).st_ino for fd in fds if fd >= 0}
        hint = self.owner.attach(region)
        if hint is not None:
            region.info.hints[self.owner.name] = hint
        return region

    def deregister(self, region):
        self.owner.detach(region)
        self.ledger.remove_region(region.name)

    def grant(self, blocks=None, region=None):
        region = region or self.region
        return self.gate.grant(region, range(region.info.num_blocks) if blocks is None else blocks)

    def job(self, ranges, grant=None, into=None, **options) -> FakeJob:
        """Return a job that reads ranges to the same places, or to those of `into`."""
        grant = grant or self.grant()
        source = Extents.of(grant.region.name, ranges)
        return FakeJob(self.local, Extents.of("pool", into or ranges), grant, source, **options)

    def start(self, job) -> FakeJob:
        self.link.start(job)
        return job

    def read(self, *args, **options) -> FakeJob:
        job = self.start(self.job(*args, **options))
        job.wait()
        return job

    def open_files(self) -> tuple[int, int]:
        """Count this process's descriptors and mappings of what was ever registered here."""
        with open("/proc/self/maps") as maps:
            mapped = [int(line.split()[4]) for line in maps if "memfd:" in line]
        opened = []
        for fd in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                opened.append(os.fstat(int(fd)).st_ino)
        return tuple(len([i for i in found if i in self._inodes]) for found in (opened, mapped))

    def close(self):
        self.reader.close()
        self.owner.close()
        self.ledger.close()
        if isinstance(self.memory, SharedMemory):
            self.memory.close()

    def make_memory(self, nbytes=4 * MIB):
        if self.owner.name == "shm":
            return SharedMemory("kv", nbytes)
        return np.zeros(nbytes, np.uint8)


@pytest.fixture
def make_world():
    worlds = []

    def make(*args, **options) -> World:
        worlds.append(World(*args, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.fixture(params=["native", "plain"])
def native(request) -> bool:
    if request.param == "native" and moving.load() is None:
        pytest.skip("the native library is not built")
    return request.param == "native"


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def world(make_world, kind, native) -> World:
    return make_world(kind, native)


@pytest.fixture
def shm(make_world, native) -> World:
    return make_world("shm", native)


@pytest.fixture
def make_file():
    """Return a registered file's memory and its bytes."""
    files = []

    def make(content: np.ndarray, offset: int = 0) -> FileMemory:
        file = tempfile.TemporaryFile()  # noqa: SIM115
        files.append(file)
        file.write(bytes(offset) + content.tobytes())
        file.flush()
        return FileMemory(file.fileno(), len(content), offset)

    yield make
    for file in files:
        file.close()


class OwnerProcess:
    """Speaks to owner_process.py."""

    def __init__(self, transport: str, nbytes: int) -> None:
        command = [sys.executable, "-P", str(OWNER), "owner", transport, str(nbytes)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.metadata = bytes.fromhex(self._process.stdout.readline())

    @staticmethod
    def content(nbytes: int) -> np.ndarray:
        words = np.arange(1, nbytes // 8 + 1, dtype=np.uint64)
        return (words * np.uint64(0x9E3779B97F4A7C15)).view(np.uint8)

    def ticket(self) -> bytes:
        self._say("ticket")
        return bytes.fromhex(self._process.stdout.readline())

    @property
    def memory_name(self) -> str:
        return f"memfd:stafette-pool-{self._process.pid} "

    def becomes_another_program(self) -> None:
        """Return when it has: the kernel closes what the old one had open."""
        self._say("exec")
        assert self._process.stdout.readline() == "another program\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)
        self._process.stdin.close()
        self._process.stdout.close()

    def _say(self, line: str) -> None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


@pytest.fixture
def start_owner():
    started = []

    def start(transport: str, nbytes: int) -> OwnerProcess:
        started.append(OwnerProcess(transport, nbytes))
        return started[-1]

    yield start
    for owner in started:
        owner.kill()


@pytest.fixture
def make_reader():
    """Return agents of this process, each with the pool that it reads into."""
    agents = []

    def make(transport: str, nbytes: int) -> tuple[Agent, np.ndarray]:
        config = AgentConfig(name="reader", token=TOKEN, transports=(transport,))
        pool = np.zeros(nbytes, np.uint8)
        agents.append(Agent(config))
        agents[-1].register("pool", pool)
        return agents[-1], pool

    yield make
    for agent in agents:
        agent.close()
