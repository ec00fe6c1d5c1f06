"""Sockets that many threads use, and that end without anybody waiting for ever."""

import os
import socket
import threading
import time

import pytest

from stafette.kvtransfer.control.channel import Channel, FdChannel
from stafette.kvtransfer.errors import MalformedMessage


@pytest.fixture
def ends():
    near, far = socket.socketpair()
    yield near, far
    near.close()
    far.close()


def soon() -> float:
    return time.monotonic() + 0.05


def late() -> float:
    return time.monotonic() + 20


def test_what_is_sent_in_part_ends_the_connection(ends):
    channel = Channel(ends[0])

    with pytest.raises(TimeoutError):
        channel.send(bytes(10 << 20), soon())

    with pytest.raises(OSError, match="Broken pipe"):
        channel.send(b"more", late())


def test_who_could_send_nothing_yet_may_try_again(ends):
    channel, full = Channel(ends[0]), 0
    try:
        while True:
            full += ends[0].send(bytes(65_536), socket.MSG_DONTWAIT)
    except BlockingIOError:
        pass

    with pytest.raises(TimeoutError):
        channel.send(b"hello", soon())

    Channel(ends[1]).recv_exactly(full, late())
    channel.send(b"hello", late())
    assert ends[1].recv(10) == b"hello"


def test_a_senders_time_begins_when_the_one_before_is_done(ends):
    channel = Channel(ends[0])
    channel._sending.acquire()
    sender = threading.Thread(target=channel.send_within, args=(b"hello", 0.02))
    sender.start()

    time.sleep(0.05)
    channel._sending.release()
    sender.join()

    assert ends[1].recv(10) == b"hello"


def test_a_sender_with_a_deadline_waits_no_longer_for_the_one_before(ends):
    channel = Channel(ends[0])

    with channel._sending, pytest.raises(TimeoutError):
        channel.send(b"hello", soon())


def test_the_end_wakes_whoever_reads_or_sends(ends):
    channel, ended = Channel(ends[0]), []

    def read():
        ended.append(channel.recv(10, None))

    def send():
        with pytest.raises(OSError, match="Broken pipe"):
            channel.send(bytes(10 << 20), late())
        ended.append("sent nothing")

    threads = [threading.Thread(target=each) for each in (read, send)]
    for thread in threads:
        thread.start()
    channel.shutdown()
    for thread in threads:
        thread.join()
    channel.close()
    channel.close()

    assert sorted(map(str, ended)) == ["b''", "sent nothing"]
    with pytest.raises(BrokenPipeError):
        channel.send(b"x", late())


def test_what_was_handed_on_is_left_alone(ends):
    channel = Channel(ends[0])

    connection = channel.detach()
    channel.shutdown()
    channel.close()

    connection.sendall(b"hello")
    assert ends[1].recv(10) == b"hello"


def test_descriptors_that_nobody_takes_are_closed_with_the_channel(ends):
    channel = FdChannel(ends[0])
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(ends[1], [b"x"], [0, 0, 0])

    channel.recv(10, late())

    assert len(os.listdir("/proc/self/fd")) == before + 3
    channel.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_more_descriptors_than_came_are_malformed(ends):
    channel = FdChannel(ends[0])

    with pytest.raises(MalformedMessage, match="expected 1, not 0"):
        channel.take_fds(1)


def test_descriptors_without_end_are_malformed(ends):
    channel = FdChannel(ends[0])

    def send_many():
        try:
            for _ in range(100):
                socket.send_fds(ends[1], [b"x"], [0] * 50)
        except OSError:
            pass

    sender = threading.Thread(target=send_many)
    sender.start()
    with pytest.raises(MalformedMessage, match="at most 16 of them a frame"):
        channel.recv_exactly(100, late())
    channel.close()
    ends[1].shutdown(socket.SHUT_RDWR)
    sender.join()
