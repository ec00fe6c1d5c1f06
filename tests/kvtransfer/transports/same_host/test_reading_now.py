"""A small read that the caller does himself, at once: done only where every promise holds."""

from dataclasses import replace

import numpy as np
import pytest

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.errors import LeaseEnded, StaleBlocks, TransferError
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.memory import SharedMemory
from stafette.kvtransfer.native import moving
from stafette.kvtransfer.posting import ReadOptions
from stafette.kvtransfer.transfer import DoneTransfer, TransferState

pytestmark = pytest.mark.skipif(moving.load() is None, reason="the native library is not built")

BLOCK = 4096
PATIENCE_S = 60.0


@pytest.fixture
def opened(make_world, kind):
    """Return a world whose region is open, and a lease on its first blocks."""
    world = make_world(kind, True, 64 * BLOCK)
    grant = world.grant(range(8))
    world.read([(0, 1)], grant=grant)
    world.pool[:] = 0
    return world, grant


def test_bytes_are_there_when_it_returns(opened):
    world, grant = opened

    assert world.link.read_now((5, BLOCK, 100), grant, world.local)

    assert np.array_equal(world.pool[5:105], world.theirs[BLOCK : BLOCK + 100])
    assert not world.pool[105:].any()
    assert not world.pool[:5].any()


def struck(world, grant):
    world.ledger.strike(grant.slot)


def epoch_over(world, grant):
    world.ledger.end_epoch()


def overwritten(world, grant):
    world.ledger.overwrite("kv", np.array([1]))


def owner_deregistered(world, grant):
    world.deregister(world.region)


def withdrawn_here(world, grant):
    world.local.withdrawn.value = 1


def closed(world, grant):
    world.link.close()


@pytest.mark.parametrize(
    "end", [struck, epoch_over, overwritten, owner_deregistered, withdrawn_here, closed]
)
def test_nothing_moves_when_the_promise_does_not_hold(opened, end):
    world, grant = opened
    end(world, grant)

    assert not world.link.read_now((0, BLOCK, 100), grant, world.local)

    assert not world.pool.any()


@pytest.mark.parametrize(
    "one",
    [
        (0, 8 * BLOCK, 1),  # the first block that the lease does not cover
        (0, 7 * BLOCK, BLOCK + 1),
        (0, 64 * BLOCK - 1, 2),  # beyond the owner's region
        (0, (1 << 64) - 1, 2),  # whose sum overflows
        (64 * BLOCK - 1, 0, 2),  # beyond our own
        ((1 << 64) - 1, 0, 2),
    ],
)
def test_nothing_moves_out_of_bounds(opened, one):
    world, grant = opened

    assert not world.link.read_now(one, grant, world.local)

    assert not world.pool.any()


def test_another_lease_in_the_same_place_is_not_taken_for_it(opened):
    world, grant = opened
    world.ledger.strike(grant.slot)
    world.ledger.write(grant.slot, grant.lease_id + 1)

    assert not world.link.read_now((0, 0, 1), grant, world.local)
    assert not world.link.read_now((0, 0, 1), replace(grant, slot=1 << 20), world.local)


def test_what_is_not_small_or_not_open_is_left_to_others(make_world, kind):
    world = make_world(kind, True, 64 * BLOCK)
    grant = world.grant()

    assert not world.link.read_now((0, 0, 1), grant, world.local)  # its owner was not asked yet
    world.read([(0, 1)], grant=grant)
    assert world.link.read_now((0, 0, 16 * BLOCK), grant, world.local)
    assert not world.link.read_now((0, 0, 16 * BLOCK + 1), grant, world.local)


def test_jobs_of_other_leases_and_regions_may_alternate(opened):
    world, grant = opened
    other = world.grant(range(8, 16))

    for number in range(4):
        world.pool[:] = 0
        assert world.link.read_now((0, number, 9), grant, world.local)
        assert world.link.read_now((9, 8 * BLOCK + number, 9), other, world.local)
        assert not world.link.read_now((0, 8 * BLOCK, 1), grant, world.local)
        assert np.array_equal(world.pool[:9], world.theirs[number : number + 9])
        assert np.array_equal(world.pool[9:18], world.theirs[8 * BLOCK + number :][:9])


@pytest.fixture
def agents():
    """Return an owner with a pool in shared memory, a reader, its pool, and a lease on it all."""
    memory = SharedMemory("pool", 16 * BLOCK)
    memory.array[:] = np.arange(16 * BLOCK) % 251
    config = {"token": b"the token of this cluster", "transports": ("shm",)}
    with Agent(AgentConfig(name="owner", **config)) as owner:
        with Agent(AgentConfig(name="reader", **config)) as reader:
            owner.register("pool", memory, BLOCK)
            pool = np.zeros(16 * BLOCK, np.uint8)
            reader.register("pool", pool, BLOCK)
            reader.add_peer(owner.metadata())
            lease = reader.accept(owner.grant("pool", range(16)))
            assert reader.read(block(0), block(0), lease).wait(PATIENCE_S)  # opens the region
            yield owner, reader, pool, lease
    memory.close()


def block(number: int) -> Extents:
    return Extents.of_blocks("pool", [number], BLOCK)


def test_transfer_is_done_when_its_post_returns(agents):
    _, reader, pool, lease = agents
    seen = []

    transfer = reader.read(block(3), block(5), lease, timeout_s=7.0)

    assert isinstance(transfer, DoneTransfer)
    assert transfer.poll() is TransferState.DONE
    assert transfer.settled
    assert transfer.error is None
    assert np.array_equal(pool[3 * BLOCK : 4 * BLOCK], np.arange(5 * BLOCK, 6 * BLOCK) % 251)
    transfer.cancel()
    transfer.on_settled(seen.append)
    assert seen == [transfer]
    assert transfer.wait()
    assert transfer.wait_settled()
    told = transfer.telemetry()
    assert (told.transport, told.num_ranges, told.moved_bytes) == ("shm", 1, BLOCK)
    assert 0 < told.seconds < PATIENCE_S
    assert reader.stats().transfers["shm"].done == 2
    assert reader.stats().unsettled == 0
    assert reader.routes("owner")["shm"].measured == 2


def test_owner_is_told_of_it(agents):
    owner, reader, _, lease = agents

    transfer = reader.read(block(3), block(5), lease, options=ReadOptions(notify=b"read"))

    assert isinstance(transfer, DoneTransfer)
    (note,) = owner.notifications(PATIENCE_S)
    assert note.payload == b"read"


def test_what_forbids_it_is_raised_as_ever(agents):
    owner, reader, pool, lease = agents
    pool[:] = 0

    owner.overwrite("pool", [5])
    with pytest.raises(StaleBlocks, match="5"):
        reader.read(block(3), block(5), lease).wait(PATIENCE_S)
    assert reader.read(block(3), block(6), lease).wait(PATIENCE_S)
    pool[:] = 0
    owner.close()
    with pytest.raises(TransferError):
        reader.read(block(3), block(6), lease).wait(PATIENCE_S)

    assert not pool.any()


def test_revoked_lease_is_over_at_once(agents):
    owner, reader, pool, _ = agents
    ticket = owner.grant("pool", range(16))
    lease = reader.accept(ticket)
    assert isinstance(reader.read(block(3), block(5), lease), DoneTransfer)
    pool[:] = 0

    owner.revoke(ticket)

    with pytest.raises(LeaseEnded, match="is over"):
        reader.read(block(3), block(5), lease).wait(PATIENCE_S)
    assert not pool.any()


def test_nothing_is_read_into_what_was_deregistered(agents):
    _, reader, pool, lease = agents
    prepared = reader.prepare(block(3), block(5), "owner")
    assert isinstance(prepared.post(lease), DoneTransfer)
    pool[:] = 0

    reader.deregister("pool")

    with pytest.raises(TransferError, match="our region pool was deregistered"):
        prepared.post(lease).wait(PATIENCE_S)
    assert not pool.any()
