"""Extents: bounds that do not overflow, blocks touched, neighbours merged, a strict wire form."""

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.extents import Extents, check_pairs, merge_pairs

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=12)


def bytes_of(ranges):
    return [place for offset, length in ranges for place in range(offset, offset + length)]


@given(RANGES, st.integers(1, 60))
def test_within_says_what_each_range_says(ranges, size):
    expected = all(offset + length <= size for offset, length in ranges)

    assert Extents.of("kv", ranges).within(size) == expected


def test_offset_near_the_end_of_64_bits_does_not_wrap_into_the_region():
    assert not Extents.of("kv", [(2**64 - 4, 8)]).within(1 << 30)
    assert not Extents.of("kv", [(8, 2**64 - 4)]).within(1 << 30)


@given(RANGES, st.integers(1, 9))
def test_blocks_are_those_of_every_byte(ranges, block_bytes):
    expected = sorted({place // block_bytes for place in bytes_of(ranges)})

    assert Extents.of("kv", ranges).blocks(block_bytes).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3)), max_size=20))
def test_merged_pairs_copy_the_same_bytes_in_the_same_order(pairs):
    local = Extents.of("a", [(mine * 3, length) for mine, _, length in pairs])
    remote = Extents.of("b", [(theirs * 3, length) for _, theirs, length in pairs])

    merged = merge_pairs(local, remote)

    for before, after in zip((local, remote), merged, strict=True):
        flat = zip(after.offsets.tolist(), after.lengths.tolist(), strict=True)
        was = zip(before.offsets.tolist(), before.lengths.tolist(), strict=True)
        assert bytes_of(flat) == bytes_of(was)


def test_neighbours_on_both_sides_become_one_range():
    local = Extents.of_blocks("a", [4, 5, 6, 9], 16)
    remote = Extents.of_blocks("b", [0, 1, 3, 4], 16)

    into, source = merge_pairs(local, remote)

    assert list(zip(into.offsets.tolist(), into.lengths.tolist(), strict=True)) == [
        (64, 32),
        (96, 16),
        (144, 16),
    ]
    assert source.offsets.tolist() == [0, 48, 64]


@given(RANGES)
def test_wire_form_gives_back_the_same_ranges(ranges):
    extents = Extents.of("kv", ranges)

    read = Extents.read(msgpack.unpackb(msgpack.packb(extents.pack())))

    assert read.region == "kv"
    assert read.offsets.tolist() == extents.offsets.tolist()
    assert read.lengths.tolist() == extents.lengths.tolist()


@pytest.mark.parametrize(
    "value",
    [
        None,
        ["kv", b"12345678"],
        ["kv", b"12345678", b""],
        ["kv", b"1234567", b"1234567"],
        [7, b"", b""],
        ["k" * 65, b"", b""],
        ["kv", [1], [2]],
    ],
)
def test_malformed_wire_form_is_refused(value):
    with pytest.raises(MalformedMessage):
        Extents.read(value)


def test_pairs_of_unequal_lengths_are_refused_with_the_place():
    with pytest.raises(InvalidValue, match="remote range 1"):
        check_pairs(Extents.of("a", [(0, 4), (8, 4)]), Extents.of("b", [(0, 4), (8, 5)]))
    with pytest.raises(InvalidValue, match="as many ranges as local: 1"):
        check_pairs(Extents.of("a", [(0, 4)]), Extents.of("b", [(0, 2), (2, 2)]))


@pytest.mark.parametrize("ranges", [[(-1, 2)], [(0, 2.5)], [("a", 1)], [(1, 2, 3)], [(1 << 64, 1)]])
def test_ranges_that_are_none_are_refused(ranges):
    with pytest.raises(InvalidValue):
        Extents.of("kv", ranges)


def test_negative_block_number_is_refused():
    with pytest.raises(InvalidValue, match="begin at 0"):
        Extents.of_blocks("kv", np.array([3, -1]), 16)
