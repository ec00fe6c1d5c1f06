"""What the transport of torch.distributed does beyond what every transport keeps: see `contract`.

Owners are processes of their own, as in the contract's tests.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed

from stafette.kvtransfer.control.host import host_id
from stafette.kvtransfer.errors import (
    ChecksumMismatch,
    InvalidValue,
    PeerLost,
    TransferCancelled,
    TransferTimedOut,
)
from stafette.kvtransfer.posting import ReadOptions
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.transport import PeerInfo, Surroundings
from stafette.kvtransfer.transports.torch_dist import TorchDistConfig, TorchDistTransport
from stafette.kvtransfer.transports.two_sided import media
from stafette.kvtransfer.transports.two_sided.media import GLOO, NCCL, choose
from stafette.kvtransfer.transports.two_sided.media import Path as Way
from stafette.kvtransfer.transports.two_sided.stream import Digest
from stafette.kvtransfer.transports.visits.talk import Talk, TalkEnded

CONTRACT = Path(__file__).parents[1] / "contract" / "conftest.py"
MIB = 1 << 20
BLOCK = 4096
PATIENCE_S = 30.0

_spec = importlib.util.spec_from_file_location("contract_cluster", CONTRACT)
contract = importlib.util.module_from_spec(_spec)
sys.modules["contract_cluster"] = contract
_spec.loader.exec_module(contract)


@pytest.fixture
def cluster():
    cluster = contract.Cluster("torch_dist")
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def lasting():
    """An owner that many tests use: to start one takes as long as to import torch."""
    cluster = contract.Cluster("torch_dist")
    yield cluster.owner()
    cluster.close()


@pytest.fixture
def pair(lasting, cluster):
    """That owner, and a reader that has no way to it yet."""
    reader = cluster.reader()
    reader.agent.add_peer(lasting.metadata)
    yield lasting, reader
    lasting.go_on()


def threads_named(*starts: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(starts)]


def wait_until(condition, patience_s=PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def threads_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


# Several processes


def test_four_processes_read_from_each_other_all_at_once(cluster):
    """Each shows its first 2 MiB to everybody, and reads those of each other into a place apart."""
    names = ("a", "b", "c", "d")
    owners = start_at_once(cluster, names)
    num_blocks = 2 * MIB // BLOCK
    order = np.random.default_rng(7).permutation(num_blocks)

    def place(other):
        return (2 + 2 * names.index(other)) * MIB

    def ranges(other):
        into = [(place(other) + BLOCK * to, BLOCK) for to in range(num_blocks)]
        return into, [(int(block) * BLOCK, BLOCK) for block in order]

    for name, other in permutations(names, 2):
        owners[name]("add_peer", owners[other].metadata.hex())
    tickets = [
        (name, other, owners[other]("grant", list(range(num_blocks))))
        for name, other in permutations(names, 2)
    ]
    numbers = [
        (name, owners[name]("read", ticket, *ranges(other))) for name, other, ticket in tickets
    ]

    assert all(owners[name]("settle", number) for name, number in numbers)
    for name in names:
        found = pool_of(cluster, owners[name])
        expected = contract.content(16 * MIB, names.index(name)).copy()
        for other in set(names) - {name}:
            theirs = contract.content(16 * MIB, names.index(other))[: 2 * MIB]
            part = slice(place(other), place(other) + 2 * MIB)
            expected[part] = theirs.reshape(-1, BLOCK)[order].reshape(-1)
        assert np.array_equal(found, expected)


def start_at_once(cluster, names):
    """Return owners by name, whose seed is their place."""
    with ThreadPoolExecutor(len(names)) as executor:
        started = executor.map(
            lambda seed: cluster.owner(names[seed], seed=seed, pool_bytes=16 * MIB),
            range(len(names)),
        )
        return dict(zip(names, started, strict=True))


def pool_of(cluster, owner) -> np.ndarray:
    """Read all of an owner's pool."""
    reader = cluster.reader(16 * MIB, name=f"reader-of-{owner.settings['name']}")
    reader.agent.add_peer(owner.metadata)
    lease = reader.accept(owner("grant"))
    assert reader.read([(0, 16 * MIB)], [(0, 16 * MIB)], lease).wait(PATIENCE_S)
    return reader.pool


def test_engines_own_process_group_is_not_disturbed(cluster):
    owner, reader = cluster.pair()
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        lease = reader.accept(owner("grant"))
        assert reader.read([(0, MIB)], [(0, MIB)], lease).wait(PATIENCE_S)
        owner.kill()
        with pytest.raises(PeerLost):
            reader.read([(0, MIB)], [(0, MIB)], lease).wait(PATIENCE_S)

        ones = torch.ones(3)
        torch.distributed.all_reduce(ones)
        assert ones.tolist() == [1.0] * 3
    finally:
        torch.distributed.destroy_process_group()


# What ends, and what it leaves


def test_reader_that_is_killed_leaves_no_thread_and_no_claim_at_the_owner(cluster, start_reader):
    owner = cluster.owner(pool_bytes=256 * MIB, block_bytes=MIB, lease={"ttl_s": 0.3})
    before = threads_of(owner.process.pid)
    reading = start_reader(owner)

    reading.kill()

    wait_until(lambda: owner("ended_leases") == ["EXPIRED"])  # a claim would keep it alive
    wait_until(lambda: threads_of(owner.process.pid) <= before)


READING = """
import sys, time
from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.memory import SharedMemory

token, metadata, nbytes = sys.argv[1:]
agent = Agent(AgentConfig(name="killed", token=token.encode(), transports=("torch_dist",)))
agent.register("pool", SharedMemory("pool", int(nbytes)))
agent.add_peer(bytes.fromhex(metadata))
print("ready", flush=True)
lease = agent.accept(bytes.fromhex(sys.stdin.readline()))
everything = Extents.of("pool", [(0, int(nbytes))])
while True:
    transfer = agent.read(everything, everything, lease)
    while not transfer.telemetry().moved_bytes:
        time.sleep(0)
    print("reading", flush=True)
    transfer.wait()
"""


@pytest.fixture
def start_reader():
    """Start a process that reads for ever, and is in the middle of it."""
    started = []

    def start(owner) -> subprocess.Popen:
        arguments = [contract.TOKEN, owner.metadata.hex(), str(256 * MIB)]
        command = [sys.executable, "-P", "-c", READING, *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        process.stdin.write(owner("grant") + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "reading\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_reader_that_is_stopped_does_not_keep_others_from_the_owner(cluster, start_reader):
    owner = cluster.owner(pool_bytes=256 * MIB, block_bytes=MIB, lease={"ttl_s": 0.3})
    reading = start_reader(owner)

    os.kill(reading.pid, signal.SIGSTOP)

    other = cluster.reader(256 * MIB, name="other")
    other.agent.add_peer(owner.metadata)
    lease = other.accept(owner("grant"))
    assert other.read([(0, MIB)], [(0, MIB)], lease).wait(PATIENCE_S)


def test_job_after_a_cancelled_one_gets_a_new_process_group(pair):
    owner, reader = pair
    lease = reader.accept(owner("grant"))

    for _ in range(5):
        transfer = reader.read([(0, 4 * MIB)], [(0, 4 * MIB)], lease)
        transfer.cancel()
        assert transfer.wait_settled(PATIENCE_S)
        reader.pool[:] = 0
        assert reader.read([(0, 4 * MIB)], [(0, 4 * MIB)], lease).wait(PATIENCE_S)
        assert np.array_equal(reader.pool, contract.content(4 * MIB, 1))


def test_stopped_owner_does_not_keep_other_jobs_waiting_beyond_their_deadlines(pair):
    owner, reader = pair
    lease = reader.accept(owner("grant"))
    assert reader.read([(0, 1)], [(0, 1)], lease).wait(PATIENCE_S)
    owner.stop()

    transfers = [reader.read([(0, MIB)], [(0, MIB)], lease, 0.3) for _ in range(6)]

    for transfer in transfers:
        with pytest.raises(TransferTimedOut):
            transfer.wait(PATIENCE_S)
        assert transfer.wait_settled(PATIENCE_S)
    assert reader.agent.stats().unsettled == 0


def test_owner_stopped_while_the_group_is_made_is_given_up_at_the_deadline(pair):
    owner, reader = pair
    lease = reader.accept(owner("grant"))
    owner.stop()

    transfer = reader.read([(0, MIB)], [(0, MIB)], lease, 0.3)

    with pytest.raises(TransferTimedOut):
        transfer.wait(PATIENCE_S)
    assert transfer.wait_settled(PATIENCE_S)


def test_transfer_cancelled_while_the_group_is_made_settles_at_once(pair):
    owner, reader = pair
    lease = reader.accept(owner("grant"))
    owner.stop()
    transfer = reader.read([(0, MIB)], [(0, MIB)], lease, PATIENCE_S)
    time.sleep(0.05)

    transfer.cancel()

    assert transfer.settled
    with pytest.raises(TransferCancelled):
        transfer.wait(PATIENCE_S)


def test_owner_that_closes_in_the_middle_of_a_read_leaves_no_thread(cluster):
    reader, owner = cluster.reader(64 * MIB), cluster.reader(64 * MIB, name="owner")
    reader.agent.add_peer(owner.agent.metadata())
    lease = reader.agent.accept(owner.agent.grant("pool", range(64 * MIB // BLOCK)))
    transfers = [reader.read([(0, 64 * MIB)], [(0, 64 * MIB)], lease) for _ in range(4)]

    owner.agent.close()

    for transfer in transfers:
        assert transfer.wait_settled(PATIENCE_S)
    reader.agent.close()
    # Where gloo forgot to wake it, a thread ends with its own wait, which is shorter than this.
    wait_until(lambda: not threads_named("reading-", "control-"), patience_s=3 * PATIENCE_S)


# Bytes that changed on the way


def test_byte_that_changed_on_the_way_is_noticed_when_asked_for(pair, monkeypatch):
    owner, reader = pair
    lease = reader.accept(owner("grant"))

    def spoil(self, pool, buffer):
        buffer[0] ^= 1
        take(self, pool, buffer)

    take = Digest.take
    monkeypatch.setattr(Digest, "take", spoil)

    verified = ReadOptions(verify=True)
    transfer = reader.read([(0, MIB)], [(0, MIB)], lease, options=verified)

    with pytest.raises(ChecksumMismatch):
        transfer.wait(PATIENCE_S)


# Whom it reaches, and how

SURROUNDINGS = Surroundings("here", 1, None, None)


def region(kind: str, device: int = 0, hint: object = None) -> LocalRegion:
    hints = {} if hint is None else {"torch_dist": hint}
    return LocalRegion(RegionInfo("pool", kind, 8, 8, 1, device, None, hints), None, 0)


def peer(offers: object) -> PeerInfo:
    return PeerInfo("there", 1, host_id(), {} if offers is None else {"torch_dist": offers})


class NcclToo(media.Media):
    def names(self):
        return [GLOO, NCCL]


@pytest.fixture
def transport():
    transport = TorchDistTransport(SURROUNDINGS)
    yield transport
    transport.close()


@pytest.mark.parametrize(
    ("offers", "theirs", "ours", "reason"),
    [
        (["gloo"], "host", "host", ""),
        (["gloo"], "cuda", "host", ""),
        (["gloo"], "host", "cuda", ""),
        (None, "host", "host", "does not offer it"),
        (["gloo"], "file", "host", "of kind file"),
        (["gloo"], "host", "file", "of kind file"),
    ],
)
def test_transport_tells_which_regions_it_does_not_reach(transport, offers, theirs, ours, reason):
    found = transport.unreachable(peer(offers), region(theirs).info, region(ours))

    assert reason in found
    assert bool(reason) == bool(found)


@pytest.mark.parametrize(
    ("offers", "theirs", "ours", "way"),
    [
        (["gloo", "nccl"], region("cuda", 1, "gpu-a"), region("cuda", 2), Way(NCCL, 1, 2)),
        (["gloo", "nccl"], region("cuda", 1, "gpu-b"), region("cuda", 2), Way(GLOO, 0, 0)),
        (["gloo"], region("cuda", 1, "gpu-a"), region("cuda", 2), Way(GLOO, 0, 0)),
        (["gloo", "nccl"], region("host"), region("cuda", 2), Way(GLOO, 0, 0)),
    ],
)
def test_nccl_connects_two_gpus_and_gloo_everything_else(monkeypatch, offers, theirs, ours, way):
    monkeypatch.setattr(media, "gpu_of", lambda local: "gpu-b")

    assert choose(NcclToo(), peer(offers), theirs.info, ours) == way


def test_without_torch_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed", None)

    with pytest.raises(InvalidValue, match="needs torch"):
        TorchDistTransport(SURROUNDINGS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lanes": 0},
        {"part_bytes": 4095},
        {"part_bytes": (64 << 20) + 1},
        {"join_timeout_s": 0.0},
        {"close_timeout_s": -1.0},
        {"max_visits": 0},
    ],
)
def test_option_out_of_bounds_is_named(wrong):
    (name,) = wrong

    with pytest.raises(InvalidValue, match=f"torch_dist.{name}"):
        TorchDistConfig(**wrong)


@pytest.mark.parametrize(
    "message",
    [
        ["join", "pigeons", 4096, 0, 1.0],
        ["join", "gloo", -1, 0, 1.0],
        ["join", "gloo", 1 << 40, 0, 1.0],
        ["join", "gloo", 4096, 0],
        ["read", 7, ["pool", b"", b""], True, 1.0],  # before any join
        ["taken"],
        ["hello"],
        [],
    ],
)
def test_visitor_that_breaks_the_protocol_is_shown_out(cluster, message):
    owner, reader = cluster.reader(name="owner"), cluster.reader()
    reader.agent.add_peer(owner.agent.metadata())
    control = reader.agent._peers.get("owner").control
    talk = Talk(control.dial("torch_dist", PATIENCE_S))

    talk.say(*message)

    with pytest.raises(TalkEnded):
        talk.hear(time.monotonic() + PATIENCE_S)
    talk.close()
