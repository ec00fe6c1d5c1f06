"""What is kept of a peer, read back, and refused."""

import msgpack
import pytest

from stafette.kvtransfer.directory.records import (
    MAX_LABELS,
    MAX_METADATA_BYTES,
    MAX_NAME_BYTES,
    PeerRecord,
    check_name,
    decode,
    decode_name,
    encode,
    may_replace,
)
from stafette.kvtransfer.errors import InvalidValue, MalformedMessage


def test_a_record_is_read_as_it_was_written():
    record = PeerRecord(2**64 - 1, b"\0" * MAX_METADATA_BYTES, {"role": "prefill", "zone": "ä"})

    assert decode(encode(record)) == record


def test_a_newer_life_replaces_an_older_one_and_nobody_else_does():
    assert may_replace(2, 1, is_own=False)
    assert may_replace(1, 1, is_own=True)
    assert not may_replace(1, 1, is_own=False)
    assert not may_replace(1, 2, is_own=True)


@pytest.mark.parametrize(
    ("epoch", "metadata", "labels"),
    [
        (-1, b"m", {}),
        (2**64, b"m", {}),
        (True, b"m", {}),
        (1, b"", {}),
        (1, "text", {}),
        (1, b"m" * (MAX_METADATA_BYTES + 1), {}),
        (1, b"m", {str(number): "" for number in range(MAX_LABELS + 1)}),
        (1, b"m", {"role": 1}),
        (1, b"m", {"role": "two\nlines"}),
        (1, b"m", {"role": "x" * 257}),
        (1, b"m", {"x" * 257: ""}),
    ],
)
def test_what_is_no_record_is_refused(epoch, metadata, labels):
    with pytest.raises(InvalidValue):
        PeerRecord(epoch, metadata, labels)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not msgpack",
        msgpack.packb([1, 1, b"m"]),
        msgpack.packb([2, 1, b"m", {}]),
        msgpack.packb([1, "1", b"m", {}]),
        msgpack.packb([1, -1, b"m", {}]),
        msgpack.packb([1, 1, b"", {}]),
        msgpack.packb([1, 1, b"m", {b"role": "x"}]),
        msgpack.packb([1, 1, b"m", {"role": 5}]),
        b"\0" * (2 * MAX_METADATA_BYTES),
    ],
)
def test_what_others_wrote_and_is_no_record_is_malformed(data):
    with pytest.raises(MalformedMessage):
        decode(data)


@pytest.mark.parametrize("name", ["", "a/b", "two\nlines", "x" * (MAX_NAME_BYTES + 1)])
def test_a_name_is_printable_short_and_without_slash(name):
    with pytest.raises(InvalidValue, match="name"):
        check_name(name)
    with pytest.raises(MalformedMessage):
        decode_name(name.encode())


def test_a_name_that_is_no_text_is_malformed():
    with pytest.raises(MalformedMessage):
        decode_name(b"\xff")
