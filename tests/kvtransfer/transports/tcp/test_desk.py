"""Small requests that native code answers: all that the owner checks is checked there as well."""

import socket
import struct
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stafette.kvtransfer.errors import AccessDenied, LeaseEnded, StaleBlocks, StaleEpoch
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.leases.held import EndReason, Terms
from stafette.kvtransfer.native import answering
from stafette.kvtransfer.transport import Grant
from stafette.kvtransfer.transports.tcp_counters import TcpTally
from stafette.kvtransfer.transports.tcp_desk import AT_ONCE_BYTES, OwnerDesk
from stafette.kvtransfer.transports.tcp_frames import FAILED, LAST, Header, Request

pytestmark = pytest.mark.skipif(answering.load() is None, reason="the library is not built")

BLOCK = 4096
NUM_BLOCKS = 64
LEASED = 48


@pytest.fixture
def pair(pairs):
    """Return a pair whose owner's desk answers for a lease on the first LEASED blocks."""
    pair = pairs(NUM_BLOCKS * BLOCK, streams=1)
    pair.grant = opened_lease(pair.owner, pair.source, range(LEASED))
    for _ in range(3):
        assert pair.read((0, 0, BLOCK)).outcome() is None
    assert num_answered(pair) == 1
    pair.into.memory[:] = 0
    return pair


def opened_lease(owner, region, blocks) -> Grant:
    """Return a lease that the reader has opened: from then on nobody else may use it."""
    lease = owner.leases.grant(region, blocks, Terms("read", 60.0, "reader"))
    return Grant(lease.id, owner.epoch, lease.slot, region.info, lease.blocks, lease.generations)


def num_answered(pair) -> int:
    return pair.owner.transport._tally.native[0]


@pytest.mark.parametrize("lending", [False, True], ids=["", "lent"], indirect=True)
def test_small_requests_are_answered_and_counted(pair, lending):
    ranges = [(0, 9, 1), (BLOCK, 3 * BLOCK, 4000), (7 * BLOCK, 40 * BLOCK, 2 * BLOCK)]

    jobs = [pair.read(*ranges), pair.read((20 * BLOCK, 0, AT_ONCE_BYTES))]

    assert [job.outcome() for job in jobs] == [None, None]
    for into, source, length in [*ranges, (20 * BLOCK, 0, AT_ONCE_BYTES)]:
        there = pair.source.memory[source : source + length]
        assert np.array_equal(pair.into.memory[into : into + length], there)
    assert num_answered(pair) == 3
    assert pair.owner.counters.requests == 5
    moved = 3 * BLOCK + 1 + 4000 + 2 * BLOCK + AT_ONCE_BYTES
    assert pair.owner.counters.bytes_out == pair.reader.counters.bytes_in == moved


@pytest.mark.parametrize(
    "other", [{"verify": True}, {}], ids=["to be verified", "larger than small"]
)
def test_other_requests_are_answered_by_python(pair, other):
    length = BLOCK if other else AT_ONCE_BYTES + 1

    assert pair.read((0, BLOCK, length), **other).outcome() is None

    assert num_answered(pair) == 1
    assert np.array_equal(pair.into.memory[:length], pair.source.memory[BLOCK : BLOCK + length])


def test_lease_that_nobody_has_opened_is_looked_at_each_time(pairs):
    pair = pairs(NUM_BLOCKS * BLOCK, streams=1)  # whose lease has no holder: another may come

    for _ in range(4):
        assert pair.read((0, 0, BLOCK)).outcome() is None

    assert num_answered(pair) == 0


def test_lease_that_was_ended_opens_nothing(pair):
    pair.owner.leases.end(pair.grant.lease_id, EndReason.REVOKED)

    assert isinstance(pair.read((0, 0, BLOCK)).outcome(), LeaseEnded)
    assert not pair.into.memory.any()
    assert pair.owner.counters.refused["LeaseEnded"] == 1


def test_lease_that_is_struck_out_before_its_desk_hears_of_it_opens_nothing(pair):
    pair.owner.ledger.strike(pair.grant.slot)
    before = num_answered(pair)

    pair.read((0, 0, BLOCK)).outcome()

    assert num_answered(pair) == before


def test_block_that_was_overwritten_is_named(pair):
    pair.owner.ledger.overwrite("source", np.array([5]))

    error = pair.read((0, 4 * BLOCK, 2 * BLOCK)).outcome()

    assert isinstance(error, StaleBlocks)
    assert error.blocks == (5,)
    assert not pair.into.memory.any()
    assert pair.read((0, 6 * BLOCK, BLOCK)).outcome() is None  # others are as they were
    assert num_answered(pair) == 2


@pytest.mark.parametrize(
    ("source", "length"),
    [
        (LEASED * BLOCK, 1),
        (LEASED * BLOCK - 1, 2),
        (NUM_BLOCKS * BLOCK - 1, 2),
        ((1 << 64) - 2, 4),
    ],
    ids=["outside the lease", "half outside", "beyond the region", "a sum that overflows"],
)
def test_what_the_lease_does_not_cover_is_refused(pair, source, length):
    job = pair.job((0, 0, length))
    job.source = Extents.of_one("source", source, length)
    job.link = pair.link
    pair.link.start(job)

    assert isinstance(job.outcome(), AccessDenied)
    assert not pair.into.memory.any()
    assert num_answered(pair) == 1


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda grant: replace(grant, epoch=grant.epoch + 1), StaleEpoch),
        (lambda grant: replace(grant, region=replace(grant.region, generation=2)), LeaseEnded),
        (lambda grant: replace(grant, region=replace(grant.region, name="other")), AccessDenied),
        (lambda grant: replace(grant, lease_id=grant.lease_id + 1), LeaseEnded),
    ],
    ids=["epoch", "generation", "region", "lease"],
)
def test_request_that_tells_of_another_life_is_refused(pair, change, error):
    grant = change(pair.grant)

    assert isinstance(pair.read((0, 0, BLOCK), grant=grant).outcome(), error)
    assert not pair.into.memory.any()
    assert num_answered(pair) == 1


def test_epoch_that_is_over_ends_everything(pair):
    pair.owner.ledger.end_epoch()
    before = num_answered(pair)

    pair.read((0, 0, BLOCK)).outcome()

    assert num_answered(pair) == before


# What a stranger may say, when a lease of its own is answered for


@pytest.fixture
def engaged(pair):
    """Return a connection of our own, whose desk answers for the lease already."""
    with pair.reader._clients[0].dial("tcp", 5.0) as connection:
        connection.settimeout(60)
        for number in (1, 2):
            connection.sendall(request(pair, number))
            assert answer(connection) == (LAST, number, content(pair, 0))
        yield connection


def request(pair, number: int, block: int = 0) -> bytes:
    source = Extents.of_one("source", block * BLOCK, BLOCK)
    return Request(number, pair.grant.lease_id, pair.owner.epoch, 1, source, False).pack()


def content(pair, block: int) -> bytes:
    return pair.source.memory[block * BLOCK : (block + 1) * BLOCK].tobytes()


def answer(connection) -> tuple[int, int, bytes]:
    header = Header.read(exactly(connection, 24))
    return header.kind, header.number, exactly(connection, header.num_bytes)


def exactly(connection, size: int) -> bytes:
    data = b""
    while len(data) < size:
        some = connection.recv(size - len(data))
        assert some, "the connection ended"
        data += some
    return data


def test_requests_may_come_together_and_in_pieces(pair, engaged):
    said = b"".join(request(pair, 10 + block, block) for block in range(40))

    for start in range(0, len(said), 333):
        engaged.sendall(said[start : start + 333])

    for block in range(40):
        assert answer(engaged) == (LAST, 10 + block, content(pair, block))


def test_small_requests_go_on_around_one_that_python_answers(pair, engaged):
    engaged.sendall(request(pair, 5, 1) + request(pair, 6, LEASED) + request(pair, 7, 2))

    assert answer(engaged) == (LAST, 5, content(pair, 1))
    kind, number, _ = answer(engaged)
    assert (kind, number) == (FAILED, 6)
    assert answer(engaged) == (LAST, 7, content(pair, 2))


def test_half_a_message_ends_the_connection_when_its_time_is_over(pairs):
    pair = pairs(NUM_BLOCKS * BLOCK, stall_timeout_s=0.1)

    with pair.reader._clients[0].dial("tcp", 5.0) as connection:
        connection.settimeout(60)
        connection.sendall(b"\0\0")
        assert connection.recv(1) == b""

    assert pair.owner.counters.stalled == 1


def test_connection_that_ends_in_the_middle_of_a_message_ends_quietly(pair, engaged):
    engaged.sendall(request(pair, 3)[:-1])
    engaged.shutdown(socket.SHUT_WR)

    assert engaged.recv(1) == b""
    assert pair.owner.counters.malformed == 0


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 120), byte=st.integers(0, 255))
def test_changed_request_gets_bytes_of_the_lease_or_an_error(pair, place, byte):
    said = bytearray(request(pair, 3, 1))
    said[place % len(said)] = byte

    with pair.reader._clients[0].dial("tcp", 5.0) as connection:
        connection.settimeout(60)
        for number in (1, 2):  # the desk answers from here on
            connection.sendall(request(pair, number))
            answer(connection)
        connection.sendall(bytes(said))
        connection.shutdown(socket.SHUT_WR)
        heard = b""
        while some := _received(connection):
            heard += some

    if heard and Header.read(heard[:24]).kind == LAST:
        assert heard[24:] in pair.source.memory[: LEASED * BLOCK].tobytes()
    assert pair.read((0, 0, BLOCK)).outcome() is None  # nobody else is harmed


def _received(connection) -> bytes:
    try:
        return connection.recv(1 << 16)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize(
    "ranges",
    [[(0, 0)], [(0, 0), (BLOCK, 8)], [(block * BLOCK, 8) for block in range(LEASED)]],
    ids=["none", "one of two is empty", "many"],
)
def test_any_list_of_ranges_is_answered(pair, engaged, ranges):
    source = Extents.of("source", ranges)
    said = Request(3, pair.grant.lease_id, pair.owner.epoch, 1, source, False).pack()

    engaged.sendall(said)

    header = Header.read(exactly(engaged, 24))
    wanted = b"".join(
        pair.source.memory[start : start + length].tobytes() for start, length in ranges
    )
    assert exactly(engaged, header.num_bytes) == wanted
    assert header.number == 3
    assert header.kind != FAILED


@pytest.mark.parametrize(
    "value",
    [
        [1, 3, "lease", 7, 1, ["source", b"", b""], False],
        [1, 1 << 63, 5, 7, 1, ["source", b"12345678", b"12345678"], False],
        [1, 3, 5, 7, 1, ["source", b"12345678", b"1234"], False],
        [1, 3, 5, 7, 1, ["source", b"12345678", b"12345678"], 0],
        [1, 3, 5, 7, 1, ["source", b"12345678", b"12345678"], False, 1],
    ],
)
def test_what_breaks_the_format_still_closes_the_connection(pair, engaged, value):
    body = msgpack.packb(value)

    engaged.sendall(struct.pack(">I", len(body)) + body)

    assert engaged.recv(1) == b""
    assert pair.owner.counters.malformed == 1


# What the desk keeps


@pytest.fixture
def desk(ends):
    owner = ends()
    region = owner.add(NUM_BLOCKS * BLOCK, "source")
    desk = OwnerDesk(owner.leases, TcpTally())

    def show(grant: Grant) -> None:
        source = Extents.of_one("source", 0, BLOCK)
        shown = Request(1, grant.lease_id, owner.epoch, 1, source, False)
        with owner.leases.claim("reader", grant.lease_id, source) as claim:
            desk.seen(shown, claim)

    yield owner, region, desk, show
    desk.close()


def test_lease_is_kept_from_its_second_request_on_until_it_ends(desk):
    owner, region, desk, show = desk
    grant = opened_lease(owner, region, range(4))

    show(grant)
    assert not desk._promised
    show(grant)
    assert list(desk._promised) == [grant.lease_id]
    owner.leases.end(grant.lease_id, EndReason.RELEASED)

    assert not desk._promised


def test_desk_keeps_a_few_leases_and_forgets_the_oldest(desk):
    owner, region, desk, show = desk
    grants = [opened_lease(owner, region, range(4)) for _ in range(20)]

    for grant in grants:
        show(grant)
        show(grant)

    assert list(desk._promised) == [grant.lease_id for grant in grants[4:]]


def test_lease_may_end_after_the_desk_was_closed(desk):
    owner, region, desk, show = desk
    grant = opened_lease(owner, region, range(4))
    show(grant)
    show(grant)

    desk.close()

    assert owner.leases.end(grant.lease_id, EndReason.RELEASED)


def test_peer_that_takes_no_answers_is_given_up(desk):
    owner, region, desk, show = desk
    grant = opened_lease(owner, region, range(4))
    show(grant)
    show(grant)
    source = Extents.of_one("source", 0, 4 * BLOCK)
    said = Request(1, grant.lease_id, owner.epoch, 1, source, False).pack()
    theirs, ours = socket.socketpair()

    with theirs, ours:
        theirs.sendall(said * 100)  # the answers are more than the socket holds
        with pytest.raises(TimeoutError, match="it takes no bytes"):
            desk.serve(ours.fileno(), 0.05)
