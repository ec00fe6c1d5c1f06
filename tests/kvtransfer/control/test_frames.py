"""Frames: however the stream is cut, the same bodies come out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.control.frames import FrameReader, encode
from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.strict import pack

values = st.lists(st.binary(max_size=40) | st.integers(0, 9), max_size=8)


@given(values, st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_a_stream_may_be_cut_anywhere(sent, sizes):
    stream = b"".join(encode(value, 100) for value in sent)
    reader, found, place, turn = FrameReader(100), [], 0, 0

    while place < len(stream):
        size = sizes[turn % len(sizes)]
        found += reader.feed(stream[place : place + size])
        place, turn = place + size, turn + 1

    assert found == [pack(value) for value in sent]


@given(st.binary(max_size=60))
def test_random_bytes_are_bodies_or_malformed(data):
    try:
        bodies = FrameReader(16).feed(data)
    except MalformedMessage:
        return
    assert all(0 < len(body) <= 16 for body in bodies)


@pytest.mark.parametrize("length", [0, 101, (1 << 32) - 1])
def test_a_length_out_of_bounds_is_malformed_as_soon_as_it_is_known(length):
    with pytest.raises(MalformedMessage, match="frame length: expected 1..100"):
        FrameReader(100).feed(length.to_bytes(4, "big"))


def test_frames_before_a_malformed_one_are_lost_with_it_only_if_they_came_with_it():
    reader = FrameReader(100)

    assert reader.feed(encode(1, 100)) == [b"\x01"]
    with pytest.raises(MalformedMessage):
        reader.feed(b"\0\0\0\0")


@pytest.mark.parametrize(
    "value",
    [b"x" * 100, object(), 1 << 64, [[]]],
    ids=["too long", "no type", "too large", "nested"],
)
def test_what_no_peer_could_read_is_not_written(value):
    deep: object = value
    if value == [[]]:
        for _ in range(2_000):
            deep = [deep]

    with pytest.raises(InvalidValue, match="payload = "):
        encode(deep, 100)
