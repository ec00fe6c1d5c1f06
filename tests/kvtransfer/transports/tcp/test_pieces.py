"""The parts of the transport that need no connection: options, ranges, cuts, books, frames."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.extents import MAX_EXTENTS, Extents
from stafette.kvtransfer.transports.tcp_books import Books, Place
from stafette.kvtransfer.transports.tcp_config import TcpConfig
from stafette.kvtransfer.transports.tcp_flow import Digest, Flow
from stafette.kvtransfer.transports.tcp_frames import (
    DATA,
    DONE,
    Cancel,
    Header,
    Request,
    read_message,
)
from stafette.kvtransfer.transports.tcp_parts import cut
from stafette.kvtransfer.transports.tcp_ranges import MAX_VECTORS, Ranges
from stafette.kvtransfer.transports.tcp_session import Answers

POOL = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)
some_ranges = st.lists(
    st.tuples(st.integers(0, 9_000), st.integers(0, 900)), min_size=1, max_size=30
)


class Region:
    memory = POOL
    address = POOL.ctypes.data


class Part:
    """What the books ask of one."""

    def __init__(self, number, num_extents=1) -> None:
        self.number = number
        self.num_extents = num_extents


def content(ranges) -> bytes:
    return b"".join(POOL[start : start + length].tobytes() for start, length in ranges)


def asked_for(*numbers, max_requests=64):
    books, parts = Books(max_requests), [Part(number) for number in numbers]
    books.waiting.extend(parts)
    while books.ask_next() is not None:
        pass
    return books, parts


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("streams", 0),
        ("max_requests", 0),
        ("max_connections", 0),
        ("stall_timeout_s", 0.0),
        ("dial_timeout_s", -1.0),
        ("small_bytes", -1),
        ("ask_us", -1),
        ("spread_bytes", 10),
        ("frame_bytes", 100),
        ("frame_bytes", 1 << 30),
    ],
)
def test_wrong_option_is_named_with_its_value_and_what_to_do(field, value):
    with pytest.raises(InvalidValue, match=rf"^tcp\.{field} = {value}: must be ") as raised:
        TcpConfig(**{field: value})

    assert raised.value.value == value


@given(some_ranges, st.lists(st.integers(1, 2_000), min_size=1))
def test_ranges_are_used_up_from_the_front_in_any_steps(ranges, steps):
    job = Ranges.of(Region, Extents.of("pool", ranges))
    seen = b""

    while job.left:
        views = job.views(steps[len(seen) % len(steps)])
        assert 0 < sum(map(len, views)) <= steps[len(seen) % len(steps)]
        seen += b"".join(views)
        job.advance(sum(map(len, views)))

    assert seen == content(ranges)
    assert job.views(1) == []


@given(some_ranges, st.integers(0, 2_000))
def test_rest_of_ranges_is_a_copy_and_nothing_is_left(ranges, done):
    job = Ranges.of(Region, Extents.of("pool", ranges))
    job.advance(min(done, job.left))

    assert job.take_rest() == content(ranges)[done:]
    assert job.left == 0


def test_one_call_takes_no_more_ranges_than_the_kernel_does():
    ranges = [(2 * i, 1) for i in range(MAX_VECTORS + 10)]
    job = Ranges.of(Region, Extents.of("pool", ranges))

    assert len(job.views(9_999)) == MAX_VECTORS
    assert job.take_rest() == content(ranges)


@given(some_ranges, st.integers(1, 500), st.booleans())
def test_digest_does_not_depend_on_the_steps(ranges, step, native):
    whole, stepwise = Digest(native), Digest(native)
    whole.update(content(ranges))
    flow = Flow(1, Ranges.of(Region, Extents.of("pool", ranges)), stepwise)

    while flow.ranges.left:
        flow.ranges.advance(min(step, flow.ranges.left))
        flow.passed()

    assert stepwise.value() == whole.value()


@given(some_ranges.filter(lambda ranges: sum(length for _, length in ranges) >= 5))
def test_cut_ranges_are_the_same_bytes_in_about_equal_parts(ranges):
    parts = cut(Extents.of("pool", [each for each in ranges if each[1]]), 5)

    seen = [Ranges.of(Region, part).take_rest() for part in parts]

    assert b"".join(seen) == content(ranges)
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


def test_no_more_is_asked_for_than_the_owner_takes():
    books, (first, second, third) = asked_for(1, 2, 3, max_requests=2)
    assert list(books) == [first, second, third]

    assert books.ask_next() is None
    books.settle(1)

    assert books.ask_next() is third


def test_what_was_given_up_counts_until_the_owner_has_ended_it():
    books, (first, second, third) = asked_for(1, 2, 3, max_requests=2)

    assert books.give_up(first, now=5.0) is Place.ASKED

    assert books.ask_next() is None
    assert books.oldest_given_up(9.0) == 5.0
    assert books.take_in_hand(1) is None
    assert books.settle(1) is None
    assert books.oldest_given_up(9.0) == 9.0
    assert books.ask_next() is third


def test_ranges_of_all_requests_together_are_limited_but_one_always_goes():
    books = Books(64)
    books.waiting.extend([Part(1, MAX_EXTENTS), Part(2, 1)])

    assert books.ask_next().number == 1
    assert books.ask_next() is None
    books.settle(1)
    assert books.ask_next().number == 2


def test_part_in_hand_is_ended_only_by_who_has_it():
    books, (part,) = asked_for(1)
    books.take_in_hand(1)

    assert books.give_up(part, now=0.0) is Place.IN_HAND

    books.put_down()
    assert books.give_up(part, now=0.0) is Place.ASKED
    assert books.give_up(part, now=0.0) is Place.NOWHERE


def test_lost_connection_leaves_what_waits():
    books, (first, second) = asked_for(1, 2, max_requests=1)
    books.give_up(first, now=0.0)
    third = Part(3)
    books.waiting.append(third)

    assert books.lose() == []
    assert books.ask_next() is second
    assert books.lose() == [second]
    assert books.drop_waiting() == [third]


def test_number_that_nobody_asked_for_is_malformed():
    books, _ = asked_for(1)

    for number in (0, 2):
        with pytest.raises(MalformedMessage):
            books.find(number)


def test_thread_asks_again_and_again_only_where_answers_come_soon():
    answers = Answers(100e-6)
    assert answers.worth_asking_s == 100e-6

    answers.took(5.0)
    assert answers.worth_asking_s == 0
    for _ in range(30):
        answers.took(50e-6)
    assert answers.worth_asking_s == 100e-6
    for _ in range(30):
        answers.took(150e-6)
    assert answers.worth_asking_s == 0


def test_messages_and_headers_survive_the_way():
    source = Extents.of("pool", [(1, 2), (3, 4)])
    request = Request(7, 5, (1 << 64) - 1, 3, source, True)

    read = read_message(request.pack()[4:])

    assert (read.number, read.lease_id, read.epoch, read.generation) == (7, 5, (1 << 64) - 1, 3)
    assert read.source.pack() == source.pack()
    assert read.verify is True
    assert read_message(Cancel(9).pack()[4:]) == Cancel(9)
    header = Header(DONE, 0, 9, (1 << 64) - 1)
    assert Header.read(header.pack()) == header


@pytest.mark.parametrize("header", [Header(0, 0, 1), Header(DONE, 1, 1), Header(DATA, 1 << 31, 1)])
def test_header_beyond_the_protocol_is_malformed(header):
    with pytest.raises(MalformedMessage):
        Header.read(header.pack())
