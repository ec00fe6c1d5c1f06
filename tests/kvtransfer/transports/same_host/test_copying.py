"""Bytes that shm and process_vm copy: all of them, to their places, and none beside."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stafette.kvtransfer.errors import (
    ChecksumMismatch,
    LeaseEnded,
    TransferError,
)

MIB = 1 << 20
BLOCK = 4096
LONG = 20 * MIB  # more than one native call moves


@st.composite
def scattered(draw):
    """Ranges in random order: those of the destination do not overlap, those of the source may."""
    cuts = sorted(draw(st.sets(st.integers(0, 4 * MIB), min_size=2, max_size=40)))
    pieces = [(a, b - a) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    into = draw(st.permutations(pieces))[: draw(st.integers(1, len(pieces)))]
    source = [(draw(st.integers(0, 4 * MIB - length)), length) for _, length in into]
    return list(into), source


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lists=scattered(), verify=st.booleans())
def test_scattered_ranges_arrive_each_in_its_place(world, lists, verify):
    into, source = lists
    world.pool[:] = 0
    expected = np.zeros_like(world.pool)
    for (to, length), (of, _) in zip(into, source, strict=True):
        expected[to : to + length] = world.theirs[of : of + length]

    job = world.read(source, into=into, verify=verify)

    assert np.array_equal(world.pool, expected)
    assert job.moved == sum(length for _, length in into)


@pytest.mark.parametrize("block_bytes", [1, 64, 4096, 65_536, MIB])
def test_lists_of_equal_blocks_arrive_whatever_their_size(world, block_bytes):
    count = min(1500, 4 * MIB // block_bytes)
    random = np.random.default_rng(block_bytes)
    to, of = (random.permutation(4 * MIB // block_bytes)[:count] for _ in range(2))
    world.pool[:] = 0

    into = [(int(i) * block_bytes, block_bytes) for i in to]
    world.read([(int(i) * block_bytes, block_bytes) for i in of], into=into)

    ours, theirs = (memory.reshape(-1, block_bytes) for memory in (world.pool, world.theirs))
    assert np.array_equal(ours[to], theirs[of])
    assert int(world.pool.astype(np.uint64).sum()) == int(theirs[of].astype(np.uint64).sum())


def test_long_lists_of_unaligned_ranges_go_past_the_caches_and_arrive(make_world, kind, native):
    world = make_world(kind, native, nbytes=LONG)
    step, length = 70_003, 65_533
    into = [(3 + i * step, length) for i in range(LONG // step - 1)]
    source = [(5 + i * step, length) for i in range(len(into))]
    expected = np.zeros_like(world.pool)
    for (to, _), (of, _) in zip(into, source[::-1], strict=True):
        expected[to : to + length] = world.theirs[of : of + length]

    world.read(source[::-1], into=into)

    assert np.array_equal(world.pool, expected)


def test_long_copies_show_their_progress(make_world, kind, native):
    world = make_world(kind, native, nbytes=LONG)
    seen = []
    job = world.job([(0, LONG)])
    job.on_advance = lambda job: seen.append(job.moved)

    world.start(job).wait()

    assert 0 < seen[0] < LONG
    assert seen[-1] == LONG
    assert np.array_equal(world.pool, world.theirs)


def test_bytes_that_differ_from_the_owners_are_noticed(world):
    job = world.job([(0, MIB), (2 * MIB, 5)], verify=True)
    job.on_advance = lambda job: world.pool.__setitem__(77, world.pool[77] ^ 1)

    with pytest.raises(ChecksumMismatch):
        world.start(job).wait()


def test_checksums_of_the_same_bytes_in_another_order_differ(world):
    job = world.job([(0, BLOCK), (BLOCK, BLOCK)], verify=True)
    job.on_advance = lambda job: world.pool.__setitem__(
        slice(0, 2 * BLOCK), np.roll(world.theirs[: 2 * BLOCK], BLOCK)
    )

    with pytest.raises(ChecksumMismatch):
        world.start(job).wait()


def test_malformed_checksum_is_an_error(world):
    world.control.operations[f"{world.owner.name}.digest"] = lambda peer, payload: "none"

    with pytest.raises(TransferError, match="digest"):
        world.read([(0, 1)], verify=True)


def test_lease_that_ends_before_the_checksum_is_made_ends_the_job(world):
    grant = world.grant()
    world.control.before = lambda operation: (
        world.gate.end(grant) if operation.endswith("digest") else None
    )

    with pytest.raises(LeaseEnded):
        world.read([(0, MIB)], grant=grant, verify=True)
