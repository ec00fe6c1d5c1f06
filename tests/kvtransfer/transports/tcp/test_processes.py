"""Peers in processes of their own that are killed, stopped, or on another network."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.errors import PeerLost, TransferError, TransferTimedOut
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.native import answering
from stafette.kvtransfer.transports.tcp_config import TcpConfig

PEER = Path(__file__).with_name("peer_process.py")
MIB = 1 << 20
POOL_BYTES = 32 * MIB
TOKEN = b"the token of this cluster"


class PeerProcess:
    def __init__(self, name: str, host: str = "127.0.0.1", prefix: tuple[str, ...] = ()) -> None:
        settings = {"name": name, "pool_bytes": POOL_BYTES, "host": host}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-P", str(PEER), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.metadata = json.loads(self.process.stdout.readline())

    def __call__(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def stop(self) -> None:
        """Return when it stands still: a signal takes a moment."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(20)
        self.process.stdin.close()
        self.process.stdout.close()


class Here:
    """The agent of this process."""

    def __init__(self, host: str = "127.0.0.1", **options) -> None:
        config = AgentConfig(
            name="here",
            token=TOKEN,
            host=host,
            transports=("tcp",),
            transport_options={"tcp": TcpConfig(**options)},
        )
        self.agent = Agent(config)
        self.pool = np.zeros(POOL_BYTES, np.uint8)
        self.agent.register("pool", self.pool, block_bytes=4096)

    @property
    def counters(self):
        return self.agent._transports["tcp"].counters()

    @property
    def num_claims(self) -> int:
        return sum(lease.claims for lease in self.agent._leases._leases.values())

    def lease_of(self, peer: PeerProcess):
        self.agent.add_peer(bytes.fromhex(peer.metadata))
        return self.agent.accept(bytes.fromhex(peer("grant")))

    def read(self, lease, times: int = 1, timeout_s: float = 20.0):
        """Read the peer's whole pool into ours, several times in one transfer."""
        whole = Extents.of("pool", [(0, POOL_BYTES)] * times)
        return self.agent.read(whole, whole, lease, timeout_s)


@pytest.fixture
def peer():
    made = []

    def start(*arguments, **options) -> PeerProcess:
        made.append(PeerProcess(*arguments, **options))
        return made[-1]

    yield start
    for each in made:
        each.end()


@pytest.fixture
def here():
    made = []

    def make(**options) -> Here:
        made.append(Here(**options))
        return made[-1]

    yield make
    for each in made:
        each.agent.close()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_killed_owner_is_a_lost_peer_long_before_the_deadline(peer, here, eventually):
    owner, reader = peer("owner"), here()
    transfer = reader.read(reader.lease_of(owner), times=200, timeout_s=600.0)
    eventually(lambda: transfer.telemetry().moved_bytes)

    owner.signal(signal.SIGKILL)

    with pytest.raises(PeerLost):
        transfer.wait(20)
    assert transfer.wait_settled(20)


def test_stopped_owner_is_given_up_at_the_deadline_and_goes_on_later(peer, here, eventually):
    owner, reader = peer("owner"), here()
    lease = reader.lease_of(owner)
    assert reader.read(lease).wait(20)  # there is a connection
    transfer = reader.read(lease, times=200, timeout_s=3.0)
    eventually(lambda: transfer.telemetry().moved_bytes)

    owner.signal(signal.SIGSTOP)

    with pytest.raises(TransferTimedOut):
        transfer.wait(20)
    assert transfer.wait_settled(20)
    reader.pool[:] = 0
    time.sleep(0.05)
    assert not reader.pool.any()
    owner.signal(signal.SIGCONT)
    assert reader.read(lease).wait(20)
    assert np.array_equal(reader.pool.view(np.uint64), np.arange(POOL_BYTES // 8))


@pytest.mark.skipif(answering.load() is None, reason="the library is not built")
@pytest.mark.parametrize("last", ["SIGCONT", "SIGKILL"])
def test_stopped_owner_of_small_reads_is_given_up_at_the_deadline(peer, here, eventually, last):
    owner, reader = peer("owner"), here()
    lease = reader.lease_of(owner)
    small = Extents.of("pool", [(0, 4096)])
    for _ in range(40):
        assert reader.agent.read(small, small, lease, 20.0).wait(20)
    assert owner("num_answered") > 20  # by native code
    reader.pool[:] = 0

    owner.stop()
    transfers = [reader.agent.read(small, small, lease, 0.5) for _ in range(3)]

    for transfer in transfers:
        with pytest.raises(TransferTimedOut):
            transfer.wait(20)
        assert transfer.wait_settled(20)
    assert not len(reader.agent.quarantined("pool"))
    owner.signal(getattr(signal, last))
    if last == "SIGCONT":
        whole = reader.read(lease)  # whatever the owner answers late, the next read gets its own
        assert whole.wait(20)
        assert np.array_equal(reader.pool.view(np.uint64), np.arange(POOL_BYTES // 8))
    else:
        with pytest.raises(TransferError):
            reader.agent.read(small, small, lease, 20.0).wait(20)
        assert not reader.pool.any()


def test_reader_that_stops_reading_loses_its_connection_and_no_memory_is_used_for_it(
    peer, here, eventually
):
    owner, reader = here(stall_timeout_s=0.3), peer("reader")
    ticket = owner.agent.grant("pool", range(POOL_BYTES // 4096)).hex()
    before = resident_bytes()
    reader("read", owner.agent.metadata().hex(), ticket)
    eventually(lambda: owner.counters.bytes_out > POOL_BYTES)

    reader.signal(signal.SIGSTOP)

    eventually(lambda: owner.counters.stalled)
    eventually(lambda: owner.num_claims == 0)
    assert resident_bytes() - before < 16 * MIB
    reader.signal(signal.SIGCONT)
    eventually(lambda: "PeerLost" in reader("read_outcomes"))
    eventually(lambda: reader("read_outcomes")[-1] == "")


def test_killed_reader_gives_its_claims_back(peer, here, eventually):
    owner, reader = here(), peer("reader")
    ticket = owner.agent.grant("pool", range(POOL_BYTES // 4096)).hex()
    reader("read", owner.agent.metadata().hex(), ticket)
    eventually(lambda: owner.num_claims)

    reader.signal(signal.SIGKILL)

    eventually(lambda: owner.num_claims == 0)


NETWORK = ("10.117.93.1", "10.117.93.2")


@pytest.fixture
def other_network():
    """Make a network namespace behind a link with an Ethernet's packets; return what enters it."""
    space, inner, outer = f"stafette-{os.getpid()}", f"sfi{os.getpid()}", f"sfo{os.getpid()}"
    commands = [
        f"netns add {space}",
        f"link add {outer} mtu 1500 type veth peer name {inner} mtu 1500 netns {space}",
        f"address add {NETWORK[0]}/24 dev {outer}",
        f"link set {outer} up",
        f"-n {space} address add {NETWORK[1]}/24 dev {inner}",
        f"-n {space} link set {inner} up",
        f"-n {space} link set lo up",
    ]
    try:
        for command in commands:
            done = subprocess.run(["ip", *command.split()], capture_output=True, timeout=20)
            if done.returncode:
                pytest.skip(f"no network namespace can be made here: {done.stderr.decode()}")
        yield ("ip", "netns", "exec", space)
    except FileNotFoundError:
        pytest.skip("no network namespace can be made here: there is no `ip`")
    finally:
        subprocess.run(["ip", "netns", "delete", space], capture_output=True, timeout=20)
        subprocess.run(["ip", "link", "delete", outer], capture_output=True, timeout=20)


@pytest.mark.parametrize("native", [True, False], ids=["native", "pure"])
def test_blocks_cross_a_network(peer, here, other_network, native):
    owner = peer("owner", host=NETWORK[1], prefix=other_network)
    reader = here(host=NETWORK[0], native=native)

    assert reader.read(reader.lease_of(owner)).wait(20)

    assert np.array_equal(reader.pool.view(np.uint64), np.arange(POOL_BYTES // 8))
