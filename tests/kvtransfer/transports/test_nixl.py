"""The real NIXL, between processes of the Python that has it: by CMA, and by TCP for what stalls.

Install it with `python benchmarks/kvtransfer/vs_peers.py`. The contract's tests take it from the
environment that pytest runs in.
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.engine.peers import DEFAULT_FOLDER, PeerMissing
from benchmarks.kvtransfer.peers import installing

PROCESS = Path(__file__).with_name("one_sided") / "nixl_process.py"
SRC = Path(__file__).parents[3] / "src"
TOKEN = "the cluster's token"
MIB = 1 << 20
BLOCK = 4096
PATIENCE_S = 30.0
CMA, TCP = {}, {"UCX_TLS": "tcp"}

pytestmark = pytest.mark.peers


class Failed(Exception):
    """What a command raised: the class of the error, and its text."""


class NixlProcess:
    def __init__(self, python: Path, name: str, env: dict, **options) -> None:
        settings = {
            "name": name,
            "transport": "nixl",
            "token": TOKEN,
            "memory": "array",
            "pool_bytes": 4 * MIB,
            "block_bytes": BLOCK,
            "seed": 1,
        }
        self.process = subprocess.Popen(
            [str(python), "-P", str(PROCESS), json.dumps(settings | options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | env | {"PYTHONPATH": str(SRC)},
        )
        self.metadata = self._answer()

    def __call__(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self.process.stdin.close()
        self.process.stdout.close()

    def _answer(self):
        line = self.process.stdout.readline()
        assert line, f"the process has ended: {self.process.wait(PATIENCE_S)}"
        answer, error = json.loads(line)
        if error is not None:
            raise Failed(*error)
        return answer


@pytest.fixture(scope="session")
def python() -> Path:
    try:
        return installing.nixl(DEFAULT_FOLDER, install=False)
    except PeerMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def start(python):
    started = []

    def begin(name: str, env: dict = CMA, **options) -> NixlProcess:
        started.append(NixlProcess(python, name, env, **options))
        return started[-1]

    yield begin
    for each in started:
        each.kill()


@pytest.fixture
def make_pair(start):
    def make(env: dict = CMA, **options) -> tuple[NixlProcess, NixlProcess]:
        owner, reader = start("owner", env, **options), start("reader", env, **options)
        reader("clear")
        reader("add_peer", owner.metadata)
        return owner, reader

    return make


def read(owner, reader, into, source, timeout_s=PATIENCE_S, verify=False) -> int:
    return reader("begin", owner("grant"), into, source, timeout_s, verify)


def whole(nbytes: int) -> list[list[int]]:
    return [[0, nbytes]]


@pytest.mark.parametrize("env", [CMA, TCP], ids=["cma", "tcp"])
def test_blocks_arrive_in_their_places_and_nothing_beside_them(make_pair, env):
    owner, reader = make_pair(env)
    into = [[block * BLOCK, BLOCK] for block in range(0, 1000, 2)]

    number = read(owner, reader, into, into, verify=True)

    assert reader("end", number, PATIENCE_S)
    assert all(reader("same_as", 1, start, start + BLOCK) for start, _ in into)
    assert reader("num_set", 0, 4 * MIB) <= len(into) * BLOCK
    assert all(not reader("num_set", s + BLOCK, s + 2 * BLOCK) for s, _ in into)
    assert reader("moved", number) == len(into) * BLOCK


def test_only_what_nixl_needs_is_loaded_beside_kvtransfer(make_pair):
    owner, reader = make_pair()
    assert reader("end", read(owner, reader, whole(BLOCK), whole(BLOCK)), PATIENCE_S)

    for process in (owner, reader):
        others = set(process("packages")) - {"_distutils_hack"}
        assert others == {"msgpack", "nixl", "nixl_cu12", "nixl_meta_utils", "numpy", "xxhash"}


def test_region_registered_anew_is_read_with_its_new_content(make_pair):
    owner, reader = make_pair()
    assert reader("end", read(owner, reader, whole(MIB), whole(MIB)), PATIENCE_S)
    old = owner("grant")

    owner("deregister")
    owner("register")
    owner("overwrite", list(range(MIB // BLOCK)), 2)

    with pytest.raises(Failed, match="LeaseEnded"):
        reader("begin", old, whole(MIB), whole(MIB), PATIENCE_S, False)
    assert reader("end", read(owner, reader, whole(MIB), whole(MIB)), PATIENCE_S)
    assert reader("same_as", 2, 0, MIB)


def test_content_that_changes_between_grant_and_read_is_not_taken(make_pair):
    owner, reader = make_pair()
    ticket = owner("grant")
    owner("overwrite", [3], 2)

    number = reader("begin", ticket, whole(MIB), whole(MIB), PATIENCE_S, False)

    with pytest.raises(Failed, match="StaleBlocks"):
        reader("end", number, PATIENCE_S)
    assert not reader("num_set", 0, MIB)


@pytest.mark.parametrize("env", [CMA, TCP], ids=["cma", "tcp"])
def test_killed_owner_ends_the_read_and_sets_its_destination_free(make_pair, env):
    owner, reader = make_pair(env, pool_bytes=256 * MIB, block_bytes=MIB)
    numbers = [read(owner, reader, whole(256 * MIB), whole(256 * MIB)) for _ in range(4)]

    owner.kill()

    for number in numbers:
        assert reader("settled", number, PATIENCE_S)
    with pytest.raises(Failed, match="PeerLost"):
        reader("end", numbers[-1], PATIENCE_S)
    assert reader("num_quarantined") == 0


def test_owner_that_serves_by_cma_outlives_a_killed_reader(make_pair, start):
    owner, reader = make_pair(CMA, pool_bytes=256 * MIB, block_bytes=MIB)
    for _ in range(3):
        read(owner, reader, whole(256 * MIB), whole(256 * MIB))
        reader.kill()
        reader = start("reader", CMA, pool_bytes=256 * MIB, block_bytes=MIB)
        reader("add_peer", owner.metadata)

    assert reader("end", read(owner, reader, whole(MIB), whole(MIB)), PATIENCE_S)


# By TCP the owner's process takes part in every read: one that stands still never ends it


@pytest.fixture
def stalled(make_pair):
    """Return an owner that stands still, a reader, and the number of a read that is stuck."""
    owner, reader = make_pair(TCP, pool_bytes=256 * MIB, block_bytes=MIB)
    reader("clear")
    number = read(owner, reader, whole(256 * MIB), whole(256 * MIB), timeout_s=1.0)
    wait_until(lambda: reader("moved", number) > 0)
    owner.signal(signal.SIGSTOP)
    yield owner, reader, number
    owner.signal(signal.SIGCONT)


def wait_until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_stalled_read_ends_at_its_deadline_and_keeps_its_destination(stalled):
    owner, reader, number = stalled

    with pytest.raises(Failed, match="TransferTimedOut"):
        reader("end", number, PATIENCE_S)

    assert not reader("settled", number, 0.2)
    assert reader("num_quarantined") == 256
    owner.signal(signal.SIGCONT)
    assert reader("settled", number, PATIENCE_S)
    assert reader("num_quarantined") == 0


def test_closed_agent_is_a_fence_for_what_was_stuck(stalled):
    owner, reader, number = stalled
    with pytest.raises(Failed, match="TransferTimedOut"):
        reader("end", number, PATIENCE_S)

    reader("close")

    assert reader("settled", number)
    reader("clear")
    owner.signal(signal.SIGCONT)
    time.sleep(1.0)
    assert not reader("num_set", 0, 256 * MIB)


def test_killed_owner_sets_free_what_was_stuck(stalled):
    owner, reader, number = stalled

    owner.kill()

    assert reader("settled", number, PATIENCE_S)
    assert reader("num_quarantined") == 0
    owner.signal = lambda number: None
