"""An owner and a reader in one process: real ledger, real memory, a gate and a control by hand."""

import ctypes
import gc
import itertools
import os
import tempfile
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

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
from stafette.kvtransfer.transports.same_host.link import LinkConfig
from stafette.kvtransfer.transports.shm import ShmTransport

MIB = 1 << 20
EPOCH = 7
DEADLINE_S = 30.0
KINDS = {"shm": ShmTransport, "process_vm": ProcessVmTransport}


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
        self.reader = KINDS[kind](around, LinkConfig(**options), native=native)
        self.memory = self.make_memory(nbytes)
        self.theirs = self.bytes_of(self.memory)
        self.theirs[:] = np.random.default_rng(1).integers(0, 256, nbytes, np.uint8)
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


@pytest.fixture
def open_files():
    """Count this process's descriptors, and its mappings of memory that is shared."""
    gc.collect()  # what other tests have left

    def count() -> tuple[int, int]:
        with open("/proc/self/maps") as maps:
            mapped = sum("memfd:stafette" in line for line in maps)
        return len(os.listdir("/proc/self/fd")), mapped

    return count


@pytest.fixture(scope="session")
def eventually():
    def wait(condition) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    return wait
