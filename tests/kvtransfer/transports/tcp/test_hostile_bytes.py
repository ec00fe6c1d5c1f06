"""What is no message of ours ends the connection that it came on, is counted, and harms nobody."""

import socket
import struct
import threading

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stafette.kvtransfer.control.frames import FrameReader
from stafette.kvtransfer.errors import PeerLost, TransferError
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.transports.tcp_frames import (
    DATA,
    DONE,
    FAILED,
    LAST,
    MAX_REQUEST_BYTES,
    Header,
    Request,
    read_message,
)

BLOCK = 4096
NOTHING = Extents.of("source", []).pack()
ONE = Extents.of("source", [(0, BLOCK)]).pack()


def framed(value) -> bytes:
    body = msgpack.packb(value)
    return struct.pack(">I", len(body)) + body


def dial(pair) -> socket.socket:
    connection = pair.reader._clients[0].dial("tcp", 5.0)
    connection.settimeout(20)
    return connection


def closed(connection) -> bool:
    """Whether the other side closes it, whatever it says before."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


MALFORMED = {
    "no frame": b"GET / HTTP/1.1\r\n\r\n",
    "a frame of no bytes": struct.pack(">I", 0),
    "a frame that is too long": struct.pack(">I", MAX_REQUEST_BYTES + 1),
    "no msgpack": struct.pack(">I", 3) + b"\xc1\xc1\xc1",
    "two values": struct.pack(">I", 2) + b"\x01\x01",
    "no list": framed({"read": 1}),
    "an unknown kind": framed([3, 1]),
    "too few fields": framed([1, 1, 1, 1]),
    "a number below 0": framed([1, -1, 5, 7, 1, ONE, False]),
    "a number that is too large": framed([1, 1 << 63, 5, 7, 1, ONE, False]),
    "a number that is none": framed([1, "1", 5, 7, 1, ONE, False]),
    "a bool as a number": framed([1, True, 5, 7, 1, ONE, False]),
    "a number as a bool": framed([1, 1, 5, 7, 1, ONE, 1]),
    "extents of unequal lists": framed([1, 1, 5, 7, 1, ["source", b"12345678", b""], False]),
    "extents of half words": framed([1, 1, 5, 7, 1, ["source", b"1234", b"1234"], False]),
    "a region's name that is too long": framed([1, 1, 5, 7, 1, ["s" * 65, b"", b""], False]),
    "a cancel of nothing": framed([2, None]),
    "a deep nest": struct.pack(">I", 5_000) + b"\x91" * 5_000,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_message_that_breaks_the_format_closes_the_connection(pair, data):
    with dial(pair) as stranger:
        stranger.sendall(data)
        assert closed(stranger)

    assert pair.owner.counters.malformed == 1
    assert pair.read().outcome() is None
    assert pair.arrived()


def test_number_that_is_under_way_is_not_taken_again(pairs):
    pair = pairs(64 << 20)
    request = Request(1, pair.grant.lease_id, 7, 1, pair.job().source, False).pack()

    with dial(pair) as stranger:
        stranger.sendall(request + request)
        assert closed(stranger)

    assert pair.owner.counters.malformed == 1


@pytest.fixture
def pair(pairs):
    return pairs(16 * BLOCK)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.one_of(
        st.binary(min_size=1, max_size=200),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(1 << 63), (1 << 64) - 1)
            | st.binary(max_size=40),
            lambda some: st.lists(some, max_size=8),
            max_leaves=12,
        ).map(framed),
    )
)
def test_random_bytes_never_harm_the_others(pair, data):
    with dial(pair) as stranger:
        stranger.sendall(data)
        stranger.shutdown(socket.SHUT_WR)
        assert closed(stranger)

    assert pair.read((0, 0, BLOCK), verify=True).outcome() is None


def test_half_a_message_ends_the_connection_when_its_time_is_over(pairs):
    pair = pairs(16 * BLOCK, stall_timeout_s=0.1)

    with dial(pair) as stranger:
        stranger.sendall(framed([2, 1])[:-1])
        assert closed(stranger)

    assert pair.owner.counters.stalled == 1


def test_cancel_of_an_unknown_number_is_no_fault(pair):
    with dial(pair) as stranger:
        stranger.sendall(framed([2, 99]))
        stranger.sendall(Request(5, 12345, 7, 1, pair.job().source, False).pack())
        assert Header.read(stranger.recv(24)).kind == FAILED

    assert pair.owner.counters.malformed == 0


def test_ranges_of_no_bytes_are_answered(pair):
    pieces = [(0, 0), (BLOCK, 8), (70, 0), (3 * BLOCK, 8), (5, 0)]

    with dial(pair) as stranger:
        for number, source in enumerate([[(0, 0)], pieces]):
            extents = Extents.of("source", source)
            stranger.sendall(Request(number, pair.grant.lease_id, 7, 1, extents, False).pack())
        answer = b""
        while len(answer) < 2 * 24 + 16:
            answer += stranger.recv(1 << 16)

    content = pair.source.memory
    wanted = content[BLOCK : BLOCK + 8].tobytes() + content[3 * BLOCK : 3 * BLOCK + 8].tobytes()
    assert answer == Header(DONE, 0, 0).pack() + Header(LAST, 16, 1).pack() + wanted


def header(kind, num_bytes=0, number=None, body=b"", digest=0):
    return lambda asked: (
        Header(kind, num_bytes, asked if number is None else number, digest).pack() + body
    )


ANSWERS = {
    "no frame": lambda asked: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "another protocol's header": header(0x1234),
    "bytes of a job that nobody asked for": header(DATA, 8, 1 << 40, b"12345678"),
    "an end that nobody asked for": header(DONE, 0, 1 << 40),
    "more bytes than asked for": header(DATA, 2 * BLOCK + 1, None, b"x" * (2 * BLOCK + 1)),
    "a frame of no bytes": header(DATA),
    "a frame that is too long": header(DATA, 0xFFFF_FFFF),
    "an end before the last byte": lambda asked: (
        header(DATA, BLOCK, None, b"x" * BLOCK)(asked) + header(DONE)(asked)
    ),
    "bytes after the last one": lambda asked: (
        header(DATA, 2 * BLOCK, None, b"x" * 2 * BLOCK)(asked) + header(DATA, 1, None, b"x")(asked)
    ),
    "last bytes that are not all": header(LAST, BLOCK, None, b"x" * BLOCK),
    "an end with a body": header(DONE, 4, None, b"1234"),
    "an error that is none": header(FAILED, 4, None, b"\xc1\xc1\xc1\xc1"),
    "an error of no bytes": header(FAILED),
    "an error that is too long": header(FAILED, 1 << 20),
}


@pytest.mark.parametrize("native", [True, False], ids=["native", "pure"])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_owner_that_breaks_the_format_loses_the_connection_and_writes_nowhere_else(
    pairs, answer, native
):
    pair = pairs(16 * BLOCK, native=native)
    honest, owner = pair.owner.transport.accept, Liar(answer)
    pair.owner.transport.accept = owner.accept

    job = pair.read((BLOCK, BLOCK, BLOCK), (3 * BLOCK, 3 * BLOCK, BLOCK), timeout_s=10)

    assert isinstance(job.outcome(), PeerLost)
    assert "breaks the format" in str(job.error)
    assert pair.reader.counters.malformed == 1
    untouched = np.ones(16, bool)
    untouched[[1, 3]] = False
    assert not pair.into.memory.reshape(16, BLOCK)[untouched].any()
    pair.owner.transport.accept = honest
    assert pair.read().outcome() is None
    assert pair.arrived()


@pytest.mark.parametrize("native", [True, False], ids=["native", "pure"])
@pytest.mark.parametrize("cut_at", [1, 23, 24, 25, 24 + 2 * BLOCK, 24 + 2 * BLOCK + 23])
def test_answer_that_is_cut_anywhere_is_a_lost_peer(pairs, cut_at, native):
    pair = pairs(16 * BLOCK, native=native)
    bytes_of, end_of = header(DATA, 2 * BLOCK, None, b"x" * 2 * BLOCK), header(DONE)
    liar = Liar(lambda asked: (bytes_of(asked) + end_of(asked))[:cut_at])
    pair.owner.transport.accept = liar.accept

    job = pair.read((0, 0, 2 * BLOCK))

    assert isinstance(job.outcome(), PeerLost)


def test_error_of_a_newer_owner_is_still_an_error(pair):
    body = msgpack.packb(["QuotaExceeded", ["too much"]])
    pair.owner.transport.accept = Liar(header(FAILED, len(body), None, body), stay=True).accept

    job = pair.read()

    assert type(job.outcome()) is TransferError
    assert "QuotaExceeded" in str(job.error)


class Liar:
    """Answers the first request with what `answer` makes of its number, and leaves."""

    def __init__(self, answer, stay=False) -> None:
        self._answer = answer
        self._stay = stay
        self._asked = threading.Event()

    def accept(self, connection, peer):
        reader = FrameReader(MAX_REQUEST_BYTES)
        with connection:
            bodies = []
            while not bodies:
                bodies = reader.feed(connection.recv(1 << 16))
            connection.sendall(self._answer(read_message(bodies[0]).number))
            if self._stay:
                connection.recv(1)
            else:
                connection.shutdown(socket.SHUT_WR)
                closed(connection)
