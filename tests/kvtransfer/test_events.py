"""KV events on the wire: what is written is read back, and nothing else is."""

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer import events
from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.events import (
    AllCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    decode,
    encode,
)

hashes = st.binary(min_size=1, max_size=64)
hash_tuples = st.integers(1, 64).flatmap(
    lambda size: st.lists(st.binary(min_size=size, max_size=size), max_size=5).map(tuple)
)
tiers = st.sampled_from(["device", "host", "disk", "peer"])


@st.composite
def with_content(draw):
    stored, size = draw(hash_tuples), draw(st.integers(1, 4))
    num_tokens = len(stored) * size
    tokens = draw(st.lists(st.integers(0, 2**32 - 1), min_size=num_tokens, max_size=num_tokens))
    parent = draw(st.none() | hashes)
    return BlockStored(parent, stored, draw(tiers), tuple(tokens), size, draw(st.text(max_size=9)))


any_event = st.one_of(
    st.builds(BlockStored, st.none() | hashes, hash_tuples, tiers),
    with_content(),
    st.builds(BlockRemoved, hash_tuples, st.none() | tiers),
    st.just(AllCleared()),
)
batches = st.builds(
    EventBatch,
    worker_id=st.text(max_size=60),
    epoch=st.integers(0, 2**64 - 1),
    seq=st.integers(0, 2**64 - 1),
    timestamp=st.floats(allow_nan=False, allow_infinity=False),
    events=st.lists(any_event, max_size=4).map(tuple),
    snapshot=st.booleans(),
)
GOOD = ["w", 1, 2, 3.0, False, [["stored", None, 1, b"h", "device"]]]


@given(batches)
def test_batch_survives_the_wire(batch):
    assert decode(encode(batch)) == batch


@given(st.binary(max_size=80))
def test_random_bytes_are_malformed_or_a_batch_that_reads_the_same_again(data):
    try:
        batch = decode(data)
    except MalformedMessage:
        return
    assert decode(encode(batch)) == batch


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.binary(), st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(st.sampled_from(["stored", "removed", "cleared"]), st.lists(plain, max_size=6))
def test_no_event_can_make_the_reader_fail_otherwise(tag, fields):
    with suppress(MalformedMessage):
        decode(msgpack.packb([*GOOD[:5], [[tag, *fields]]]))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, b"w"),
        (0, "w" * 257),
        (1, -1),
        (1, True),
        (1, 1.0),
        (2, None),
        (2, "1"),
        (3, None),
        (3, float("nan")),
        (3, True),
        (4, 0),
        (5, None),
        (5, {}),
        (5, b"cleared"),
        (5, [[["cleared"]]]),
    ],
)
def test_wrong_field_is_malformed(place, value):
    fields = list(GOOD)
    fields[place] = value

    with pytest.raises(MalformedMessage):
        decode(msgpack.packb(fields))


@pytest.mark.parametrize(
    "event",
    [
        [],
        ["other"],
        ["stored", None, 1, b"h"],
        ["stored", None, 1, b"h", "attic"],
        ["stored", b"", 1, b"h", "device"],
        ["stored", b"p" * 65, 1, b"h", "device"],
        ["stored", None, 65, b"h" * 65, "device"],
        ["stored", None, 0, b"", "device"],
        ["stored", None, 0, b"h", "device"],
        ["stored", None, -1, b"h", "device"],
        ["stored", None, True, b"h", "device"],
        ["stored", None, 2, b"hhh", "device"],
        ["stored", None, 4, "text", "device"],
        ["stored", None, 1, [b"h"], "device"],
        ["stored", None, 1, b"h", "device", [1, 2, 3], 2, ""],
        ["stored", None, 1, b"h", "device", [-1, 2], 2, ""],
        ["removed", 1, b"h"],
        ["removed", b"h", 1, "device"],
        ["cleared", 1],
        "cleared",
    ],
)
def test_wrong_event_is_malformed(event):
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb([*GOOD[:5], [event]]))


@pytest.mark.parametrize("data", [b"", b"\xc1", encode(EventBatch("w", 1, 1, 0.0, ())) + b"\0"])
def test_truncated_or_longer_messages_are_malformed(data):
    with pytest.raises(MalformedMessage):
        decode(data)


@pytest.mark.parametrize("hashes", [(b"a", b"ab"), (b"",), (b"a" * 65,)])
def test_hashes_that_differ_in_size_or_have_none_that_is_allowed_are_not_written(hashes):
    with pytest.raises(InvalidValue, match="hashes = .*of one size, 1..64 bytes"):
        encode(EventBatch("w", 1, 1, 0.0, (BlockRemoved(hashes),)))


def test_message_above_the_limit_is_neither_written_nor_read(monkeypatch):
    monkeypatch.setattr(events, "MAX_MESSAGE_BYTES", 100)
    batch = EventBatch("w", 1, 1, 0.0, (BlockRemoved((b"h" * 60, b"i" * 60)),))

    with pytest.raises(InvalidValue, match="at most 100"):
        encode(batch)
    with pytest.raises(MalformedMessage, match="at most 100 bytes, not 101"):
        decode(bytes(101))
