"""What an owner promised is looked at before and after a copy, by native code and by numpy."""

import numpy as np
import pytest

from stafette.kvtransfer.errors import (
    AccessDenied,
    LeaseEnded,
    StaleBlocks,
    StaleEpoch,
)
from stafette.kvtransfer.extents import Extents

MIB = 1 << 20
BLOCK = 4096
LONG = 20 * MIB  # more than one native call moves


def test_struck_lease_moves_nothing_and_the_owner_says_why(world):
    grant = world.grant()
    world.read([(0, BLOCK)], grant=grant)
    world.pool[:] = 0

    world.gate.end(grant)

    for size in (BLOCK, MIB):
        with pytest.raises(LeaseEnded, match="the owner took it back"):
            world.read([(0, size)], grant=grant)
    assert not world.pool.any()


def test_struck_lease_is_noticed_also_when_the_owner_does_not_answer(world):
    grant = world.grant()
    world.read([(0, BLOCK)], grant=grant)
    world.gate.end(grant)
    world.control.lost = True

    with pytest.raises(LeaseEnded, match="struck"):
        world.read([(0, BLOCK)], grant=grant)


def test_place_of_a_lease_that_another_lease_got_is_noticed(world):
    grant = world.grant()
    world.read([(0, BLOCK)], grant=grant)

    world.ledger.write(grant.slot, grant.lease_id + 1)

    with pytest.raises(LeaseEnded):
        world.read([(0, BLOCK)], grant=grant)


def test_overwritten_blocks_are_named_and_others_can_still_be_read(world):
    grant = world.grant()
    world.read([(0, BLOCK)], grant=grant)
    world.pool[:] = 0

    world.ledger.overwrite("kv", np.array([3, 5]))

    with pytest.raises(StaleBlocks) as caught:
        world.read([(0, 8 * BLOCK)], grant=grant)
    assert caught.value.blocks == (3, 5)
    assert not world.pool.any()
    world.read([(0, BLOCK), (4 * BLOCK, BLOCK)], grant=grant)


def test_end_of_the_owners_epoch_is_noticed(world):
    grant = world.grant()
    world.read([(0, BLOCK)], grant=grant)
    world.pool[:] = 0

    world.ledger.end_epoch()
    world.control.lost = True

    with pytest.raises(StaleEpoch):
        world.read([(0, BLOCK)], grant=grant)
    assert not world.pool.any()


def strike(world, grant):
    world.gate.end(grant)


def overwrite_what_was_copied(world, grant):
    world.ledger.overwrite("kv", np.array([0]))


def end_epoch(world, grant):
    world.ledger.end_epoch()
    world.control.lost = True


@pytest.mark.parametrize(
    ("change", "error"),
    [(strike, LeaseEnded), (overwrite_what_was_copied, StaleBlocks), (end_epoch, StaleEpoch)],
)
def test_what_changes_in_the_middle_of_a_copy_is_never_done(
    make_world, kind, native, change, error
):
    world = make_world(kind, native, nbytes=LONG)
    grant = world.grant()
    job = world.job([(0, LONG)], grant=grant)
    changed = []

    def once(job):
        if not changed:
            changed.append(job.moved)
            change(world, grant)

    job.on_advance = once
    world.start(job)

    with pytest.raises(error):
        job.wait()
    assert 0 < changed[0] < LONG


def test_lease_on_some_blocks_covers_no_others(world):
    grant = world.grant([2, 3, 7])
    world.read([(2 * BLOCK, 2 * BLOCK), (7 * BLOCK, 1)], grant=grant)
    world.pool[:] = 0

    for ranges in ([(BLOCK, BLOCK)], [(2 * BLOCK, 2 * BLOCK + 1)], [(8 * BLOCK - 1, 2)]):
        with pytest.raises(AccessDenied, match="does not cover"):
            world.read(ranges, grant=grant)
    assert not world.pool.any()


@pytest.mark.parametrize(
    ("into", "source"),
    [
        ((0, 16), (4 * MIB - 15, 16)),
        ((0, 16), (2**64 - 8, 16)),
        ((4 * MIB - 15, 16), (0, 16)),
        ((2**64 - 8, 16), (0, 16)),
        ((0, 2**63), (0, 2**63)),
    ],
)
def test_ranges_outside_of_either_region_are_refused(world, into, source):
    grant = world.grant()
    world.read([(0, 1)], grant=grant)
    world.pool[:] = 0
    job = world.job([source], into=[into], grant=grant)
    world.control.lost = True  # only this side's checks are left

    with pytest.raises(AccessDenied, match="bytes beyond"):
        world.start(job).wait()
    assert not world.pool.any()


def test_ranges_of_another_region_are_refused(world):
    grant = world.grant()
    world.read([(0, 1)], grant=grant)
    job = world.job([(0, 16)], grant=grant)
    job.source = Extents.of("other", [(0, 16)])

    with pytest.raises(AccessDenied, match="region other"):
        world.start(job).wait()


def test_lease_whose_place_is_not_in_the_ledger_is_refused(world):
    grant = world.grant()
    world.read([(0, 1)], grant=grant)
    object.__setattr__(grant, "slot", 1 << 31)
    world.link._opened[("kv", 1)]._last = None
    world.control.lost = True

    with pytest.raises(LeaseEnded):
        world.read([(0, 1)], grant=grant)
