"""A job's ranges in parts: together they are the job, and both sides cut at the same places."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.transports.cuts import Cuts

MEMORY = np.arange(5_000, dtype=np.uint32).astype(np.uint8)


def stream(offsets, lengths) -> bytes:
    pairs = zip(offsets.tolist(), lengths.tolist(), strict=True)
    return b"".join(MEMORY[a : a + n].tobytes() for a, n in pairs)


@st.composite
def jobs(draw):
    lengths = draw(st.lists(st.integers(1, 300), min_size=1, max_size=12))
    pairs = [(draw(st.integers(0, len(MEMORY) - n)), n) for n in lengths]
    return Extents.of("pool", pairs), draw(st.integers(1, 700))


@given(job=jobs())
def test_parts_are_the_ranges_in_order(job):
    extents, part_bytes = job

    cuts = Cuts(extents, part_bytes)
    parts = [cuts[i] for i in range(len(cuts))]

    assert b"".join(stream(p.offsets, p.lengths) for p in parts) == stream(
        extents.offsets, extents.lengths
    )
    assert [p.nbytes for p in parts] == [int(p.lengths.sum()) for p in parts]
    assert [p.nbytes for p in parts] == [cuts.size(i) for i in range(len(cuts))]
    assert all(p.nbytes == part_bytes for p in parts[:-1])
    assert all((p.lengths > 0).all() for p in parts)


@given(job=jobs(), seed=st.integers(0, 2**32 - 1))
def test_other_ranges_of_the_same_lengths_are_cut_at_the_same_places(job, seed):
    extents, part_bytes = job
    offsets = np.random.default_rng(seed).integers(0, 1 << 40, len(extents)).astype(np.uint64)
    other = Extents("other", offsets, extents.lengths)

    ours, theirs = Cuts(extents, part_bytes), Cuts(other, part_bytes)

    assert len(ours) == len(theirs)
    for i in range(len(ours)):
        assert (ours[i].lengths == theirs[i].lengths).all()


def test_one_byte_more_than_a_part_makes_another_part():
    cuts = Cuts(Extents.of("pool", [(7, 9)]), 8)

    assert [(p.offsets.tolist(), p.lengths.tolist()) for p in (cuts[0], cuts[1])] == [
        ([7], [8]),
        ([15], [1]),
    ]
    with pytest.raises(IndexError):
        cuts[2]


def test_ranges_near_the_end_of_64_bits_are_cut_without_overflow():
    cuts = Cuts(Extents.of("pool", [(2**64 - 10, 10)]), 4)

    assert cuts[2].offsets.tolist() == [2**64 - 2]
