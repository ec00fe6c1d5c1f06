"""File descriptors come with an answer over the Unix socket, and nowhere do they pile up."""

import mmap
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from stafette.kvtransfer.control import frames
from stafette.kvtransfer.control.server import SlowOperation
from stafette.kvtransfer.errors import (
    AccessDenied,
    TransferError,
    TransferTimedOut,
    TransportUnavailable,
)
from stafette.kvtransfer.transport import Handover


@pytest.fixture
def memory():
    """Return memory that a peer may map: its descriptor stays the owner's."""
    fds = []

    def make(content: bytes) -> int:
        fds.append(os.memfd_create("content"))
        os.write(fds[-1], content)
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


def content_of(fd: int) -> bytes:
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        found = mapped[:]
    os.close(fd)
    return found


def test_descriptors_arrive_with_their_answer(start_owner, reach, memory):
    pool = [memory(b"first"), memory(b"second")]
    client = reach(start_owner(operations={"pool": lambda peer, payload: (payload, pool)}))

    for i in range(50):
        answer, fds = client.call_fds("pool", i, 10)
        assert answer == i
        assert [content_of(fd) for fd in fds] == [b"first", b"second"]


def test_descriptors_that_are_handed_over_are_closed_when_they_were_sent(start_owner, reach):
    def hand_over(peer, payload):
        return Handover(payload, [os.memfd_create("handed-over") for _ in range(2)])

    client = reach(start_owner(operations={"pool": hand_over}))
    for fd in client.call_fds("pool", 1, 10)[1]:
        os.close(fd)

    assert client.call("pool", 2, 10) == 2  # nobody asked for its descriptors
    with pytest.raises(AccessDenied):
        client.call("nothing", 3, 10)  # the owner is through with the others

    assert num_open("handed-over") == 0


def num_open(name: str) -> int:
    """Count this process's descriptors of memory with a name."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found += name in os.readlink(f"/proc/self/fd/{fd}")
    return found


def test_descriptors_of_answers_that_overtake_each_other_find_their_callers(
    start_owner, reach, memory
):
    pool = {i: memory(b"%d" % i) for i in range(16)}
    lend = SlowOperation(lambda peer, number: (number, [pool[number]]))
    client = reach(start_owner(operations={"lend": lend}))

    def borrow(number: int) -> bool:
        answer, (fd,) = client.call_fds("lend", number, 20)
        return (answer, content_of(fd)) == (number, b"%d" % number)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(borrow, list(pool) * 10))


def test_an_operation_without_descriptors_gives_none(start_owner, reach):
    assert reach(start_owner()).call_fds("echo", [1, 2], 10) == ([1, 2], [])


def test_by_tcp_there_are_none_to_be_had(start_owner, reach):
    client = reach(start_owner(), host_id="elsewhere")

    with pytest.raises(TransportUnavailable, match="need a Unix socket"):
        client.call_fds("echo", 1, 10)

    assert client.call("echo", 1, 10) == 1


def test_what_arrives_after_the_deadline_is_closed(start_owner, reach, memory, eventually):
    fd = memory(b"late")
    owner = start_owner()
    owner.server._operations["lend"] = SlowOperation(
        lambda peer, payload: (owner.gate.wait(20), [fd, fd])
    )
    client = reach(owner)
    client.connect(10)
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(3):
        with pytest.raises(TransferTimedOut):
            client.call_fds("lend", None, 0.02)
    assert client._calls._owed == 3
    owner.gate.set()

    eventually(lambda: client._calls._owed == 0)
    eventually(lambda: len(os.listdir("/proc/self/fd")) == before)


def test_what_nobody_read_before_the_connection_ended_is_closed(start_owner, reach, memory):
    """The check for leaks, after the test, is what must hold here."""
    fd = memory(b"unread")
    owner = start_owner(operations={"lend": lambda peer, payload: (None, [fd])})
    client = reach(owner)
    client.connect(10)

    client._calls._channel.send(frames.encode([99, "lend", None, True], 1_000), 1e9)
    assert client.call("echo", 1, 10) == 1  # so the answer to the other one came as well

    client.close()


@pytest.mark.parametrize(
    "answer",
    [
        lambda fd: (None, [fd] * 17),
        lambda fd: (None, [999_999]),  # closed already
        lambda fd: (None, fd),
        lambda fd: (None, [fd], "more"),
    ],
)
def test_descriptors_that_cannot_be_sent_are_an_error_and_the_connection_goes_on(
    start_owner, reach, memory, caplog, answer
):
    fd = memory(b"x")
    owner = start_owner(operations={"lend": lambda peer, payload: answer(fd)})
    client = reach(owner)

    with pytest.raises(TransferError, match="lend failed at peer owner"):
        client.call_fds("lend", None, 10)

    assert client.call_fds("echo", 1, 10) == (1, [])
    assert owner.counters().failures == 1


def test_descriptors_that_a_stranger_sends_are_dropped(start_owner, eventually):
    owner = start_owner()
    stranger = owner.dial(unix=True)
    before = len(os.listdir("/proc/self/fd"))

    socket.send_fds(stranger, [b"stafkvct"], [stranger.fileno()] * 100)
    stranger.close()

    eventually(lambda: owner.counters().refused["lost"] == 1)
    assert len(os.listdir("/proc/self/fd")) < before
