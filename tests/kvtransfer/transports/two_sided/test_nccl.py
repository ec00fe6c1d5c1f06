"""A pipe of NCCL, whose library and GPU are doubles in host memory."""

import ctypes
import time
from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from stafette.kvtransfer.transports.two_sided.board import Board
from stafette.kvtransfer.transports.two_sided.nccl import Device, NcclPipe
from stafette.kvtransfer.transports.two_sided.nccl_library import Nccl, NcclError
from stafette.kvtransfer.transports.two_sided.pipe import OWNER, READER

PATIENCE_S = 10.0


def soon(seconds: float = PATIENCE_S) -> float:
    return time.monotonic() + seconds


class Wires:
    """What is between the two ranks: sends wait for receives, as NCCL's kernels do."""

    def __init__(self) -> None:
        self.ids = set()
        self.joined = defaultdict(set)
        self.sends, self.receives = deque(), deque()
        self.lost = False  # a rank has ended

    def match(self):
        while self.sends and self.receives:
            (source, nbytes, sent), (into, room, received) = (
                self.sends.popleft(),
                self.receives.popleft(),
            )
            assert nbytes == room
            ctypes.memmove(into, source, nbytes)
            sent.append(True)
            received.append(True)


class FakeNccl(Nccl):
    """One rank's library. A communicator that was aborted must not be touched again."""

    def __init__(self, wires: Wires) -> None:
        self.wires = wires
        self.queued = []  # a mark is done when everything before it is
        self.living = set()
        self.aborted = []
        self.fails = ""  # the call that does
        self.rank = None

    def unique_id(self):
        self.called("unique_id")
        self.wires.ids.add(b"i" * 128)
        return b"i" * 128

    def start(self, unique_id, rank):
        self.called("start")
        assert unique_id in self.wires.ids
        self.wires.joined[unique_id].add(rank)
        self.living.add(17)
        return 17

    def ready(self, comm):
        self.called("ready", comm)
        if self.wires.lost:
            raise NcclError("NCCL: remote process exited")
        return len(self.wires.joined[b"i" * 128]) == 2

    def send(self, address, nbytes, peer, comm, stream):
        self.called("send", comm)
        assert (peer, stream) == (READER, 5)
        self.wires.sends.append((address, nbytes, self.queue()))
        self.wires.match()

    def receive(self, address, nbytes, peer, comm, stream):
        self.called("receive", comm)
        assert (peer, stream) == (OWNER, 5)
        self.wires.receives.append((address, nbytes, self.queue()))
        self.wires.match()

    def abort(self, comm):
        self.living.remove(comm)
        self.aborted.append(comm)
        self.wires.lost = True

    def queue(self) -> list:
        self.queued.append([])
        return self.queued[-1]

    def called(self, name, comm=None):
        assert comm is None or comm in self.living
        if self.fails == name:
            raise NcclError(f"NCCL: {name} failed")


class FakeDevice(Device):
    handle = 5

    def __init__(self, nccl: FakeNccl) -> None:
        self.nccl = nccl
        self.inside = 0
        self.calls = []

    def __enter__(self):
        self.inside += 1

    def __exit__(self, *error):
        self.inside -= 1

    def buffer(self, nbytes):
        return torch.zeros(nbytes, dtype=torch.uint8)

    def follow(self):
        assert self.inside
        self.calls.append("follow")

    def mark(self):
        assert self.inside
        before = list(self.nccl.queued)
        return lambda: all(before)

    def settle(self):
        self.calls.append("settle")


class Pair:
    def __init__(self, talks, timeout_s=PATIENCE_S) -> None:
        wires = Wires()
        self.libraries = [FakeNccl(wires), FakeNccl(wires)]
        self.devices = [FakeDevice(library) for library in self.libraries]
        self.talks = talks
        self.timeout_s = timeout_s

    def make(self, rank: int) -> NcclPipe:
        board = Board(self.talks[rank], soon(self.timeout_s))
        return NcclPipe(self.libraries[rank], board, rank, self.devices[rank])

    def both(self) -> tuple[NcclPipe, NcclPipe]:
        with ThreadPoolExecutor(2) as executor:
            return tuple(executor.map(self.make, (OWNER, READER)))


@pytest.fixture
def pair(talks):
    return Pair(talks())


def test_buffers_arrive_in_the_order_in_which_they_were_sent(pair):
    owner, reader = pair.both()
    into = [reader.buffer(4) for _ in range(3)]

    expected = [reader.receive(buffer) for buffer in into]
    for value in (1, 2, 3):
        buffer = owner.buffer(4)
        buffer.fill_(value)
        owner.send(buffer).wait(soon())
    for pending in expected:
        pending.wait(soon())

    assert [buffer.tolist() for buffer in into] == [[1] * 4, [2] * 4, [3] * 4]
    assert pair.devices[OWNER].calls == ["follow"] * 3  # each waits for what was packed


def test_nothing_sent_is_a_timeout_at_the_deadline(pair):
    _, reader = pair.both()

    with pytest.raises(TimeoutError):
        reader.receive(reader.buffer(4)).wait(soon(0.05))


def test_abort_by_another_thread_ends_the_wait_and_touches_no_communicator(pair):
    _, reader = pair.both()
    pending = reader.receive(reader.buffer(4))
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(pending.wait, soon())
        time.sleep(0.02)

        reader.abort()

        with pytest.raises(NcclError, match="aborted"):
            waiting.result(PATIENCE_S)
    assert pair.libraries[READER].aborted == []
    with pytest.raises(NcclError):
        reader.receive(reader.buffer(4))


def test_close_aborts_once_and_waits_until_the_stream_is_quiet(pair):
    owner, reader = pair.both()

    reader.close()
    reader.close()

    assert pair.libraries[READER].aborted == [17]
    assert pair.devices[READER].calls == ["settle"]
    with pytest.raises(NcclError, match="remote process exited"):
        owner.send(owner.buffer(4)).wait(soon())


def test_peer_that_never_comes_is_a_timeout_and_the_communicator_is_given_back(talks):
    pair = Pair(talks(), timeout_s=0.05)

    with pytest.raises(TimeoutError):
        pair.make(OWNER)

    assert pair.libraries[OWNER].aborted == [17]


@pytest.mark.parametrize("call", ["unique_id", "start", "ready"])
def test_call_that_fails_while_the_pipe_is_made_leaves_nothing(pair, call):
    library = pair.libraries[OWNER]
    library.fails = call

    with pytest.raises(NcclError, match=f"{call} failed"):
        pair.make(OWNER)

    assert not library.living
    assert pair.devices[OWNER].inside == 0


@pytest.mark.parametrize("call", ["send", "ready"])
def test_call_that_fails_in_a_job_ends_it(pair, call):
    owner, _ = pair.both()
    pair.libraries[OWNER].fails = call

    with pytest.raises(NcclError, match=f"{call} failed"):
        owner.send(owner.buffer(4)).wait(soon())
    owner.close()

    assert not pair.libraries[OWNER].living
