"""Agents that read GPU memory of one another, whose GPUs are doubles in host memory.

Real agents, leases, ledgers and control connections; what runs on a real GPU is in `gpu`.
"""

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.control.host import host_id
from stafette.kvtransfer.errors import (
    ChecksumMismatch,
    InvalidValue,
    LeaseEnded,
    PeerLost,
    StaleBlocks,
    TransferCancelled,
    TransportUnavailable,
)
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.memory import SharedMemory
from stafette.kvtransfer.posting import ReadOptions
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.transport import PeerInfo
from stafette.kvtransfer.transports import gpu_bytes
from stafette.kvtransfer.transports.cuda import driver as cuda_driver
from stafette.kvtransfer.transports.cuda.driver import CudaDriver
from stafette.kvtransfer.transports.cuda_ipc import CudaIpcConfig

FAKES = Path(__file__).with_name("cuda") / "conftest.py"
TOKEN = b"the cluster's token"
SIZE = 1 << 20
BLOCK = 4096
PATIENCE_S = 20.0
LAUNCH_FAILED = 719
ONLY = ReadOptions(transport="cuda_ipc")  # and no word on other ways

_spec = importlib.util.spec_from_file_location("fake_cuda", FAKES)
fakes = importlib.util.module_from_spec(_spec)
sys.modules["fake_cuda"] = fakes
_spec.loader.exec_module(fakes)


class Node:
    """One process: its agent, its driver's library, its pool."""

    def __init__(self, name: str, library, **options) -> None:
        self.library = library
        self.agent = Agent(
            AgentConfig(
                name=name,
                token=TOKEN,
                transports=("cuda_ipc",),
                transport_options={"cuda_ipc": CudaIpcConfig(**options)},
            )
        )
        self.pool = None

    def register(self, buffer, name="pool"):
        self.agent.register(name, buffer, block_bytes=BLOCK)
        self.pool = buffer.array

    @property
    def transport(self):
        return self.agent._transports["cuda_ipc"]


class Host:
    """Processes on a machine with two GPUs."""

    def __init__(self, monkeypatch) -> None:
        self.machine = fakes.Machine()
        self.nodes = []
        self._monkeypatch = monkeypatch

    def node(self, name: str, visible=None, **options) -> Node:
        library = fakes.FakeLibcuda(self.machine, visible)
        self._monkeypatch.setattr(cuda_driver, "load", lambda: CudaDriver(library))
        self.nodes.append(Node(name, library, **options))
        return self.nodes[-1]

    def tensor(self, device: int = 0, offset: int = 0):
        array = self.machine.allocate(SIZE + offset)[offset:]
        return fakes.FakeTensor(array, device)

    def pair(self, theirs=None, ours=None, **options) -> tuple[Node, Node]:
        owner, reader = self.node("owner"), self.node("reader", **options)
        owner.register(self.tensor() if theirs is None else theirs)
        owner.pool[:] = np.random.default_rng(3).integers(1, 256, SIZE)
        reader.register(self.tensor(device=1) if ours is None else ours)
        reader.agent.add_peer(owner.agent.metadata())
        return owner, reader

    def close(self) -> None:
        self.machine.let_go()
        for node in reversed(self.nodes):
            node.agent.close()
            assert not node.library.leaks()


@pytest.fixture
def host(monkeypatch):
    host = Host(monkeypatch)
    yield host
    host.close()


def lend(owner, reader, blocks=None):
    chosen = range(SIZE // BLOCK) if blocks is None else blocks
    return reader.agent.accept(owner.agent.grant("pool", chosen))


def read(reader, lease, ranges=((0, SIZE),), **options):
    extents = Extents.of("pool", list(ranges))
    return reader.agent.read(extents, extents, lease, PATIENCE_S, **options)


def wait_until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# What moves


def test_scattered_blocks_arrive_on_another_gpu_and_nothing_beside_them(host):
    owner, reader = host.pair()
    ranges = [(block * BLOCK, BLOCK) for block in range(0, 200, 3)]

    transfer = read(reader, lend(owner, reader), ranges)

    assert transfer.wait(PATIENCE_S)
    expected = np.zeros(SIZE, np.uint8)
    for start, length in ranges:
        expected[start : start + length] = owner.pool[start : start + length]
    assert np.array_equal(reader.pool, expected)
    assert transfer.telemetry().moved_bytes == len(ranges) * BLOCK
    assert "cuMemcpyBatchAsync" in reader.library.calls


def test_region_that_begins_within_an_allocation_is_found(host):
    owner, reader = host.pair(theirs=host.tensor(offset=12_288))

    assert read(reader, lend(owner, reader)).wait(PATIENCE_S)

    assert np.array_equal(reader.pool, owner.pool)


def test_gpu_memory_is_read_into_host_memory(host):
    owner, reader = host.pair(ours=SharedMemory("pool", SIZE))

    assert read(reader, lend(owner, reader)).wait(PATIENCE_S)

    assert np.array_equal(reader.pool, owner.pool)
    assert "cuMemcpyDtoHAsync_v2" in reader.library.calls


def test_shared_host_memory_is_read_into_a_gpu(host):
    owner, reader = host.pair(theirs=SharedMemory("pool", SIZE))

    assert read(reader, lend(owner, reader)).wait(PATIENCE_S)

    assert np.array_equal(reader.pool, owner.pool)
    assert "cuMemcpyHtoDAsync_v2" in reader.library.calls


def test_allocation_is_opened_once_for_many_reads_and_closed_with_the_link(host):
    owner, reader = host.pair()

    for _ in range(3):
        assert read(reader, lend(owner, reader)).wait(PATIENCE_S)

    assert reader.library.calls.count("cuIpcOpenMemHandle_v2") == 1
    reader.agent.remove_peer("owner")
    wait_until(lambda: not reader.library.opened)


def test_two_regions_of_one_allocation_share_its_handle(host):
    whole = host.machine.allocate(2 * SIZE)
    owner, reader = host.pair(theirs=fakes.FakeTensor(whole[:SIZE]))
    owner.register(fakes.FakeTensor(whole[SIZE:]), "second")
    whole[SIZE:] = 7
    reader.agent.add_peer(owner.agent.metadata())
    first = lend(owner, reader)
    second = reader.agent.accept(owner.agent.grant("second", range(SIZE // BLOCK)))

    assert read(reader, first).wait(PATIENCE_S)
    from_second = Extents.of("second", [(0, SIZE)])
    into = Extents.of("pool", [(0, SIZE)])
    assert reader.agent.read(into, from_second, second).wait(PATIENCE_S)

    assert (reader.pool == 7).all()
    assert reader.library.calls.count("cuIpcOpenMemHandle_v2") == 1


def test_memory_registered_anew_is_opened_anew(host):
    owner, reader = host.pair()
    assert read(reader, lend(owner, reader)).wait(PATIENCE_S)

    owner.agent.deregister("pool")
    owner.register(host.tensor())
    owner.pool[:] = 9

    assert read(reader, lend(owner, reader)).wait(PATIENCE_S)
    assert (reader.pool == 9).all()
    wait_until(lambda: len(reader.library.opened) == 1)


# What the owner promised


def test_blocks_overwritten_before_the_read_are_named_and_not_read(host):
    owner, reader = host.pair()
    lease = lend(owner, reader)
    owner.agent.overwrite("pool", [3, 5])

    with pytest.raises(StaleBlocks) as caught:
        read(reader, lease).wait(PATIENCE_S)

    assert caught.value.blocks == (3, 5)
    assert not reader.pool.any()


def test_blocks_overwritten_while_the_gpu_copies_are_noticed_when_it_is_done(host):
    owner, reader = host.pair()
    lease = lend(owner, reader)
    host.machine.hold()
    transfer = read(reader, lease)
    wait_until(lambda: "cuEventRecord" in reader.library.calls)

    owner.agent.overwrite("pool", [8])
    host.machine.let_go()

    with pytest.raises(StaleBlocks):
        transfer.wait(PATIENCE_S)


def test_lease_revoked_while_the_gpu_copies_is_over_when_it_is_done(host):
    owner, reader = host.pair()
    ticket = owner.agent.grant("pool", range(SIZE // BLOCK))
    lease = reader.agent.accept(ticket)
    host.machine.hold()
    transfer = read(reader, lease)
    wait_until(lambda: "cuEventRecord" in reader.library.calls)

    owner.agent.revoke(ticket)
    host.machine.let_go()

    with pytest.raises(LeaseEnded):
        transfer.wait(PATIENCE_S)


def test_checksums_are_compared_when_asked_for(host, monkeypatch):
    owner, reader = host.pair()

    def on_host(region, extents):
        memory = fakes.ctypes.string_at(region.address, region.info.nbytes)
        for start, length in zip(extents.offsets.tolist(), extents.lengths.tolist(), strict=True):
            yield memoryview(memory)[start : start + length]

    monkeypatch.setattr(gpu_bytes, "in_order", on_host)
    verified = ReadOptions(verify=True)
    assert read(reader, lend(owner, reader), options=verified).wait(PATIENCE_S)

    spoil(reader, monkeypatch)
    with pytest.raises(ChecksumMismatch):
        read(reader, lend(owner, reader), options=verified).wait(PATIENCE_S)


def spoil(reader, monkeypatch):
    """Change a byte of what was copied, before anybody looks."""
    query = reader.library.cuEventQuery.run

    def spoiled(event):
        code = query(event)
        reader.pool[100] ^= 1
        return code

    monkeypatch.setattr(reader.library.cuEventQuery, "run", spoiled)


# What ends


def test_cancelled_read_settles_when_the_gpu_has_done_what_was_queued(host):
    owner, reader = host.pair()
    host.machine.hold()
    transfer = read(reader, lend(owner, reader))
    wait_until(lambda: "cuEventRecord" in reader.library.calls)

    transfer.cancel()
    assert not transfer.wait_settled(0.1)
    host.machine.let_go()

    assert transfer.wait_settled(PATIENCE_S)
    with pytest.raises(TransferCancelled):
        transfer.wait(PATIENCE_S)
    assert read(reader, lend(owner, reader)).wait(PATIENCE_S)


def test_closed_link_ends_its_jobs_when_the_gpu_has_done_what_was_queued(host):
    owner, reader = host.pair()
    host.machine.hold()
    transfers = [read(reader, lend(owner, reader)) for _ in range(4)]
    wait_until(lambda: "cuEventRecord" in reader.library.calls)

    reader.agent.remove_peer("owner")
    host.machine.let_go()

    assert all(transfer.wait_settled(PATIENCE_S) for transfer in transfers)
    assert all(isinstance(transfer.error, PeerLost) for transfer in transfers[2:])  # they waited


@pytest.mark.parametrize(
    "call",
    ["cuIpcOpenMemHandle_v2", "cuStreamCreate", "cuMemcpyDtoDAsync_v2", "cuEventCreate"],
)
def test_call_that_fails_speaks_against_the_way_and_the_next_read_works(host, call):
    owner, reader = host.pair()
    reader.library.fails[call] = LAUNCH_FAILED

    with pytest.raises(TransportUnavailable, match=f"{call}: CUDA_ERROR_719"):
        read(reader, lend(owner, reader), [(0, BLOCK)], options=ONLY).wait(PATIENCE_S)

    reader.library.fails.clear()
    assert read(reader, lend(owner, reader)).wait(PATIENCE_S)


# Whom it reaches


def test_memory_that_cannot_be_exported_is_registered_and_not_reached(host, caplog):
    host.machine.exportable = False
    owner, reader = host.pair()

    with pytest.raises(TransportUnavailable, match="could not be exported"):
        read(reader, lend(owner, reader)).wait(PATIENCE_S)

    assert "region pool cannot be read by other processes" in caplog.text


def test_gpus_that_do_not_read_each_other_are_told(host):
    host.machine.peers = False
    owner, reader = host.pair()

    with pytest.raises(TransportUnavailable, match="GPU 1 does not read GPU 0"):
        read(reader, lend(owner, reader)).wait(PATIENCE_S)


def test_gpu_that_this_process_does_not_see_is_read_all_the_same(host):
    owner = host.node("owner", visible=[0])
    reader = host.node("reader", visible=[1])
    owner.register(host.tensor())
    owner.pool[:] = 5
    reader.register(host.tensor())
    reader.agent.add_peer(owner.agent.metadata())

    assert read(reader, lend(owner, reader)).wait(PATIENCE_S)
    assert (reader.pool == 5).all()


EXPORT = [b"h" * 64, SIZE, 0, b"A" * 16]


def remote(kind: str, hint: object) -> RegionInfo:
    return RegionInfo("pool", kind, SIZE, BLOCK, 1, hints={"cuda_ipc": hint})


def local(kind: str) -> LocalRegion:
    return LocalRegion(RegionInfo("pool", kind, SIZE, BLOCK, 1), None, 0)


@pytest.mark.parametrize(
    ("theirs", "ours", "where", "reason"),
    [
        (remote("cuda", [1, EXPORT]), "cuda", host_id(), ""),
        (remote("cuda", [1, EXPORT]), "host", host_id(), ""),
        (remote("host", 1), "cuda", host_id(), ""),
        (remote("host", 1), "host", host_id(), "neither region"),
        (remote("cuda", [1, EXPORT]), "cuda", "elsewhere", "another host"),
        (remote("cuda", [9, EXPORT]), "cuda", host_id(), "in version 9"),
        (remote("cuda", [1, [b""]]), "cuda", host_id(), "exported memory"),
        (remote("cuda", None), "cuda", host_id(), "could not be exported"),
        (remote("host", None), "cuda", host_id(), "not SharedMemory"),
        (remote("file", 1), "cuda", host_id(), "is file memory"),
        (remote("cuda", [1, EXPORT]), "file", host_id(), "is file memory"),
    ],
)
def test_transport_tells_which_regions_it_does_not_reach(host, theirs, ours, where, reason):
    transport = host.node("reader").transport

    found = transport.unreachable(PeerInfo("owner", 1, where), theirs, local(ours))

    assert reason in found
    assert bool(reason) == bool(found)


def test_region_that_lies_about_its_place_is_not_read(host):
    owner, reader = host.pair()
    lease = lend(owner, reader)
    hint = lease.grant.region.hints["cuda_ipc"]
    hint[1][2] = 8  # the offset: eight bytes would be beside the allocation

    with pytest.raises(TransportUnavailable, match="within the allocation"):
        read(reader, lease, options=ONLY).wait(PATIENCE_S)


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"part_bytes": 4095}, {"open_timeout_s": 0.0}])
def test_option_out_of_bounds_is_named(wrong):
    (name,) = wrong

    with pytest.raises(InvalidValue, match=f"cuda_ipc.{name}"):
        CudaIpcConfig(**wrong)
