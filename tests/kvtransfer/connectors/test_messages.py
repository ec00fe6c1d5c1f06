"""What travels beside the blocks keeps its meaning, and what is malformed is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.connectors.p2p.messages import (
    MAX_PIECE_BLOCKS,
    PREFIX,
    Ended,
    Give,
    Piece,
    Take,
    read_news,
)
from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.notifications import MAX_PAYLOAD_BYTES
from stafette.kvtransfer.strict import pack, unpack

_ids = st.text(min_size=1, max_size=20)
_counts = st.integers(0, 2**31 - 1)


@st.composite
def pieces(draw):
    count = draw(st.integers(1, 20))
    many = lambda one: tuple(draw(st.lists(one, min_size=count, max_size=count)))  # noqa: E731
    num_ranks = draw(st.integers(1, 8))
    return Piece(
        draw(_ids),
        draw(_counts),
        many(st.binary(min_size=16, max_size=16)),
        many(st.integers(0, 2**32 - 1)),
        tuple(draw(st.lists(st.binary(min_size=1, max_size=50), max_size=4))),
        draw(st.integers(0, num_ranks - 1)),
        num_ranks,
    )


@given(st.one_of(pieces(), st.builds(Ended, _ids, _counts, st.text(max_size=50))))
def test_news_are_read_as_they_were_written(news):
    assert read_news(news.pack()) == news


@given(_ids, st.lists(_ids, max_size=3), st.none() | _counts, st.lists(st.binary(min_size=1)))
def test_a_requests_parameters_are_read_as_they_were_written(name, peers, count, news):
    take = Take(name, tuple(peers), count, tuple(news))
    give = Give(name, tuple(peers))

    carried = unpack(pack({**take.params()["p2p"], **give.params()["p2p"]}), MAX_PAYLOAD_BYTES)

    assert Take.find({"p2p": carried}) == take
    assert Give.find({"p2p": carried}) == give


def test_a_request_that_says_nothing_takes_and_gives_nothing():
    assert Take.find({}) is None
    assert Give.find({"other": 1}) is None
    assert Give.find(Take("a", ()).params()) is None


@given(st.binary(max_size=100))
def test_any_other_bytes_are_refused(data):
    for wrong in (data, PREFIX + data):
        with pytest.raises(MalformedMessage):
            read_news(wrong)


@pytest.mark.parametrize(
    "value",
    [
        ["piece", "h", 0, bytes(16), bytes(3), [], 0, 1],  # no whole number
        ["piece", "h", 0, bytes(15), bytes(4), [], 0, 1],  # no whole hash
        ["piece", "h", 0, bytes(32), bytes(4), [], 0, 1],  # more hashes than blocks
        ["piece", "h", 0, b"", b"", [], 0, 1],  # no block
        ["piece", "h", -1, bytes(16), bytes(4), [], 0, 1],
        ["piece", "h", 0, bytes(16), bytes(4), [b""], 0, 1],  # no ticket
        ["piece", "h", 0, bytes(16), bytes(4), [], 1, 1],  # no such rank
        ["piece", 7, 0, bytes(16), bytes(4), [], 0, 1],
        ["ended", "h", 0, 5],
        ["ended", "h", 2**40, ""],
    ],
)
def test_news_with_a_wrong_field_are_refused(value):
    with pytest.raises(MalformedMessage):
        read_news(PREFIX + pack(value))


@pytest.mark.parametrize("wrong", [7, {"take": 7}, {"take": {}}, {"take": {"id": "a", "news": 1}}])
def test_parameters_with_a_wrong_field_are_refused(wrong):
    with pytest.raises(MalformedMessage):
        Take.find({"p2p": wrong})


def test_the_largest_piece_with_many_tickets_fits_into_a_notification():
    blocks, hashes = tuple(range(MAX_PIECE_BLOCKS)), (bytes(16),) * MAX_PIECE_BLOCKS

    piece = Piece("h" * 128, 2**31 - 1, hashes, blocks, (bytes(180),) * 64, 0, 1)

    assert len(piece.pack()) <= MAX_PAYLOAD_BYTES


def test_a_long_reason_is_cut():
    assert len(read_news(Ended("h", 1, "ä" * 5000).pack()).reason.encode()) <= 1_024
