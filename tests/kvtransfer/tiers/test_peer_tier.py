"""Blocks that come from peers: from a double that keeps the contract, then from real processes."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.errors import MalformedMessage, PeerLost
from stafette.kvtransfer.tiers.agent_source import AgentSource
from stafette.kvtransfer.tiers.host_share import HostShare
from stafette.kvtransfer.tiers.job import Outcome
from stafette.kvtransfer.tiers.peer_messages import ANSWER, ASK, Answer, Question
from stafette.kvtransfer.tiers.source import BlockSource

OWNER = Path(__file__).with_name("peer_owner.py")
TOKEN = b"a token for the tests"


class FakeSource(BlockSource):
    """Has some blocks, and gives them when it may."""

    def __init__(self, keys, content_of):
        self.keys = set(keys)
        self.content_of = content_of
        self.store = None
        self.lost = set()  # located, but gone
        self.error = None
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = []

    def locate(self, hashes):
        return self.keys.intersection(hashes)

    def fetch(self, hashes, rows, timeout_s):
        self.asked.append(tuple(hashes))
        assert self.may_answer.wait(30)
        if self.error is not None:
            raise self.error
        pool = self.store.host_memory.array.reshape(-1, self.store.block_bytes)
        for key, row in zip(hashes, rows, strict=True):
            if key not in self.lost:
                pool[row] = self.content_of(key)
        return [key not in self.lost for key in hashes]


@pytest.fixture
def peered(rigs, tools):
    """Return a maker of rigs, beside a source that has the given blocks."""

    def make(names, **options):
        source = FakeSource(tools.chain_of(names)[0], tools.content_of)
        rig = rigs(source=source, **options)
        source.store = rig.store
        return rig, source

    return make


def test_prefix_that_goes_on_at_a_peer_is_found_and_fetched_once(peered):
    rig, source = peered(["ab", "abc"], host=32)
    rig.put("a")

    assert rig.where("a", "ab", "abc", "abcd") == ["host", "peer", "peer"]
    assert rig.get("a", "ab", "abc", "abcd") == ["DONE"] * 3 + ["MISSING"]
    assert rig.get("a", "ab", "abc") == ["DONE"] * 3

    assert sum(map(len, source.asked)) == 2
    assert rig.store.stats().peer.hits == 2
    assert rig.on("host") == {"a", "ab", "abc"}


def test_fetched_block_has_its_parent(peered, tools):
    rig, _ = peered(["ab", "abc"], host=128)  # large enough for batches of several blocks

    rig.get("ab", "abc", parent=tools.key_of("a"))

    (event,) = rig.events.events()
    assert event.parent == tools.key_of("a")


def test_own_copies_come_before_those_of_peers(peered):
    rig, source = peered(["a", "b"], host=3, disk=8)
    for name in "abcde":
        rig.put(name)
        rig.settle()

    assert rig.where("a") == ["disk"]
    assert rig.get("a") == ["DONE"]
    assert not source.asked


def test_blocks_that_a_peer_no_longer_has_are_computed(peered, tools):
    rig, source = peered(["a", "ab", "abc"], host=128)
    source.lost = {tools.key_of("ab")}

    outcomes = rig.get("a", "ab", "abc")

    assert outcomes == ["DONE", "FAILED", "DONE"]
    rig.put("ab", parents=[tools.key_of("a")])


def test_peer_that_is_lost_is_an_outcome_and_not_an_error(peered):
    rig, source = peered(["a"])
    source.error = PeerLost("other", "it was killed")

    assert rig.get("a") == ["FAILED"]
    assert rig.store.stats().peer.errors == 1


def test_peer_that_does_not_answer_costs_no_more_than_the_deadline(peered):
    rig, source = peered(["a"])
    source.may_answer.clear()

    assert rig.get("a", timeout_s=0.05) == ["TIMED_OUT"]
    source.may_answer.set()


def test_preheating_fetches_from_peers(peered, tools):
    rig, _ = peered(["a", "ab"], host=32)

    job = rig.store.preheat(tools.chain_of(["a", "ab", "abc"])[0])

    assert job.wait(10)
    assert job.outcomes == (Outcome.DONE, Outcome.DONE, Outcome.MISSING)
    assert rig.on("host") == {"a", "ab"}


@pytest.mark.parametrize(
    "message", [Question(7, (bytes(16), b"x" * 16)), Answer(7, b"ticket", (0, 1), (5, 6))]
)
def test_messages_come_back_as_they_were(message):
    assert type(message).read(message.pack()) == message


@pytest.mark.parametrize(
    ("read", "payload"),
    [
        (Question.read, ASK + b"\x93\x01\x02\x03"),
        (Question.read, ASK + b"\x92\x01\xc4\x01\x00"),
        (Question.read, ASK + b"\x92\x01\xa1x"),
        (Answer.read, ANSWER + b"\x94\x01\xc4\x00\x91\x00\x90"),
        (Answer.read, ANSWER + b"\x94\x01\x00\x90\x90"),
        (Answer.read, ANSWER + b""),
    ],
)
def test_malformed_messages_are_refused(read, payload):
    with pytest.raises(MalformedMessage):
        read(payload)


class Owner:
    """Another process with blocks 000, 001, ... of one chain."""

    def __init__(self, folder, host_blocks=64, num_blocks=16):
        arguments = ["owner", str(folder / "owner"), str(host_blocks), str(num_blocks)]
        command = [sys.executable, "-P", str(OWNER), *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.metadata = bytes.fromhex(self.process.stdout.readline())

    def pinned(self):
        self.process.stdin.write("pinned\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.communicate()


class Reader:
    """This process's agent and store."""

    def __init__(self, tools, owner):
        config = AgentConfig(name="reader", token=TOKEN, transports=("shm",), call_timeout_s=1.0)
        self.agent = Agent(config)
        self.source = AgentSource(self.agent, tools.block_bytes)
        self.rig = tools.Rig(tools.config_of(32), source=self.source)
        self.share = HostShare(self.agent, self.rig.store)
        self.agent.add_peer(owner.metadata)

    def close(self):
        self.rig.store.drain(10)
        self.source.close()
        self.share.close()
        self.rig.store.close()
        self.agent.close()


@pytest.fixture
def pairs(tmp_path, tools):
    """Return a maker of (owner, reader)."""
    made = []

    def make(**options):
        owner = Owner(tmp_path, **options)
        made.append(owner)
        reader = Reader(tools, owner)
        made.append(reader)
        return owner, reader

    yield make
    for each in reversed(made):
        each.close()


def names_of(count):
    return [f"{number:03}" for number in range(count)]


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_blocks_are_read_out_of_another_processs_host_tier(pairs, tools):
    owner, reader = pairs()
    names = names_of(20)  # four more than there are
    reader.source.hint("owner", tools.chain_of(names)[0])

    outcomes = reader.rig.get(*names)

    assert outcomes == ["DONE"] * 16 + ["FAILED"] * 4
    assert reader.rig.store.stats().peer.read_bytes == 16 * tools.block_bytes
    until(lambda: owner.pinned() == 0)  # the leases were given back
    assert reader.rig.where(*names) == ["host"] * 16  # and what was not there is forgotten


def test_owner_brings_its_blocks_up_from_its_disk_first(pairs, tools):
    owner, reader = pairs(host_blocks=8, num_blocks=30)
    names = names_of(3)
    reader.source.hint("owner", tools.chain_of(names)[0])

    assert reader.rig.get(*names) == ["DONE"] * 3


def test_killed_owner_costs_no_more_than_the_deadline(pairs, tools):
    owner, reader = pairs()
    names = names_of(4)
    reader.source.hint("owner", tools.chain_of(names)[0])
    owner.process.kill()

    began = time.monotonic()
    outcomes = reader.rig.get(*names, timeout_s=1.0)

    assert set(outcomes) <= {"FAILED", "TIMED_OUT"}
    assert time.monotonic() - began < 5


def test_owner_that_is_stopped_costs_no_more_than_the_deadline(pairs, tools):
    owner, reader = pairs()
    names = names_of(4)
    reader.source.hint("owner", tools.chain_of(names)[0])
    owner.process.send_signal(signal.SIGSTOP)

    assert set(reader.rig.get(*names, timeout_s=0.3)) <= {"FAILED", "TIMED_OUT"}
    until(lambda: reader.rig.store.drain(1.0))
    assert reader.rig.store.stats().host.pinned_blocks == 0


def test_hints_are_bounded_and_the_oldest_are_forgotten(pairs, tools):
    _, reader = pairs(num_blocks=1)
    reader.source._max_hints = 2
    keys, _ = tools.chain_of(["a", "b", "c"])

    reader.source.hint("owner", keys)

    assert set(reader.source.locate(keys)) == {keys[1], keys[2]}
