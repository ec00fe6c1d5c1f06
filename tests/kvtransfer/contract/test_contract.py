"""What every transport keeps, between real processes. Bytes changed on the way are each one's own.

`lasting` is a pair that many tests share; who kills or restarts a process takes `cluster`.
"""

import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stafette.kvtransfer.errors import (
    AccessDenied,
    AuthFailed,
    InvalidValue,
    LeaseEnded,
    PeerLost,
    StaleBlocks,
    StaleEpoch,
    TransferCancelled,
    TransferError,
    TransferTimedOut,
)
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.leases.ticket import Ticket
from stafette.kvtransfer.posting import ReadOptions
from stafette.kvtransfer.reading import Plan, Reading
from stafette.kvtransfer.transfer import Transfer, TransferState

MIB = 1 << 20
BLOCK = 4096
SIZES = (1, 7, 8, 4095, 4096, 4097, 65_536, 1 * MIB + 3)
SEED = 1  # of the owners' content
PATIENCE_S = 30.0


def wanted(pool_content, nbytes: int, into, source, seed: int = SEED) -> np.ndarray:
    """Return what a pool of zeros holds when the ranges have been copied into it."""
    expected, theirs = np.zeros(nbytes, np.uint8), pool_content(nbytes, seed)
    for (to, length), (origin, _) in zip(into, source, strict=True):
        expected[to : to + length] = theirs[origin : origin + length]
    return expected


@pytest.mark.parametrize("size", SIZES)
def test_one_range_of_any_size_arrives_and_nothing_beside_it(lasting, pool_content, size):
    owner, reader = lasting
    lease = reader.accept(owner("grant"))
    into, source = [(12_345, size)], [(54_321, size)]
    reader.pool[:] = 0

    transfer = reader.read(into, source, lease)

    assert transfer.wait(PATIENCE_S)
    assert np.array_equal(reader.pool, wanted(pool_content, len(reader.pool), into, source))
    assert transfer.telemetry().moved_bytes == size
    assert transfer.transport == reader.transport
    lease.release()


def test_256_mib_arrive_in_one_piece(cluster, pool_content):
    size = 256 * MIB
    owner, reader = cluster.pair(pool_bytes=size, block_bytes=MIB)

    transfer = reader.read([(0, size)], [(0, size)], reader.accept(owner("grant")))

    assert transfer.wait(PATIENCE_S)
    assert np.array_equal(reader.pool, pool_content(size, SEED))


@st.composite
def scattered(draw):
    """Ranges in random order: those of the destination do not overlap, those of the source may."""
    cuts = sorted(draw(st.sets(st.integers(0, 4 * MIB), min_size=2, max_size=60)))
    pieces = [(a, b - a) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    into = draw(st.permutations(pieces))[: draw(st.integers(1, len(pieces)))]
    source = [(draw(st.integers(0, 4 * MIB - length)), length) for _, length in into]
    return list(into), source


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lists=scattered())
def test_scattered_ranges_arrive_each_in_its_place(lasting, pool_content, lists):
    owner, reader = lasting
    into, source = lists
    lease = reader.accept(owner("grant"))
    reader.pool[:] = 0

    assert reader.read(into, source, lease).wait(PATIENCE_S)

    assert np.array_equal(reader.pool, wanted(pool_content, len(reader.pool), into, source))
    lease.release()


def test_thousands_of_blocks_are_one_call(lasting, pool_content):
    owner, reader = lasting
    lease = reader.accept(owner("grant"))
    order = np.random.default_rng(3).permutation(len(reader.pool) // BLOCK)
    reader.pool[:] = 0

    transfer = reader.agent.read(
        Extents.of_blocks("pool", order, BLOCK),
        Extents.of_blocks("pool", order[::-1], BLOCK),
        lease,
    )

    assert transfer.wait(PATIENCE_S)
    theirs = pool_content(len(reader.pool), SEED).reshape(-1, BLOCK)
    assert np.array_equal(reader.pool.reshape(-1, BLOCK)[order], theirs[order[::-1]])
    lease.release()


def test_a_prepared_read_is_posted_again_and_again(lasting, pool_content):
    owner, reader = lasting
    lease = reader.accept(owner("grant"))
    into, source = [(0, 50_000)], [(100_000, 50_000)]
    prepared = reader.agent.prepare(Extents.of("pool", into), Extents.of("pool", source), "owner")

    for _ in range(5):
        reader.pool[:] = 0
        assert prepared.post(lease).wait(PATIENCE_S)
        assert np.array_equal(reader.pool, wanted(pool_content, len(reader.pool), into, source))
    lease.release()


def test_reads_in_both_directions_at_once_do_not_disturb_each_other(cluster, pool_content):
    owner, reader = cluster.pair()
    reader.pool[:] = pool_content(len(reader.pool), 2)
    owner("add_peer", reader.agent.metadata().hex())
    half = len(reader.pool) // 2
    mine = reader.agent.grant("pool", range(half // BLOCK)).hex()
    lease = reader.accept(owner("grant", list(range(half // BLOCK))))

    numbers, transfers = [], []
    for start in range(0, half, half // 8):
        piece = [(half + start, half // 8)], [(start, half // 8)]
        numbers.append(owner("read", mine, *piece))
        transfers.append(reader.read(*piece, lease))

    assert all(transfer.wait(PATIENCE_S) for transfer in transfers)
    assert all(owner("settle", number) for number in numbers)
    assert np.array_equal(reader.pool[half:], pool_content(len(reader.pool), SEED)[:half])
    assert np.array_equal(reader.pool[:half], pool_content(len(reader.pool), 2)[:half])
    assert owner("same_as", SEED, 0, half)


def test_many_threads_read_at_once(lasting, pool_content):
    owner, reader = lasting
    lease = reader.accept(owner("grant"))
    reader.pool[:] = 0
    each = len(reader.pool) // 8

    def read(part: int) -> None:
        for piece in range(part * each, (part + 1) * each, each // 16):
            spans = [(piece, each // 16)]
            done.append(reader.read(spans, spans, lease).wait(PATIENCE_S))

    done: list[bool] = []
    threads = [threading.Thread(target=read, args=(part,)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert done == [True] * 128
    assert np.array_equal(reader.pool, pool_content(len(reader.pool), SEED))
    lease.release()


def test_checksums_agree_when_nothing_changed(lasting, pool_content):
    owner, reader = lasting
    lease = reader.accept(owner("grant"))
    into, source = [(9, 300_000), (400_000, 1)], [(1_000_000, 300_000), (7, 1)]
    reader.pool[:] = 0

    transfer = reader.read(into, source, lease, options=ReadOptions(verify=True))

    assert transfer.wait(PATIENCE_S)
    assert np.array_equal(reader.pool, wanted(pool_content, len(reader.pool), into, source))
    lease.release()


def in_the_middle(reader, lease, size: int) -> Transfer:
    """Return a transfer that has moved some bytes, and not yet all of them."""
    for _ in range(50):
        transfer = reader.read([(0, size)], [(0, size)], lease)
        while transfer.poll() is TransferState.PENDING:
            if 0 < transfer.telemetry().moved_bytes < size:
                return transfer
            time.sleep(0)
        assert transfer.wait(PATIENCE_S)
    raise AssertionError("no transfer could be caught in the middle")


def test_after_a_cancelled_read_has_settled_not_one_byte_lands(cluster):
    size = 256 * MIB
    owner, reader = cluster.pair(pool_bytes=size, block_bytes=MIB)
    lease = reader.accept(owner("grant"))
    transfer = in_the_middle(reader, lease, size)

    transfer.cancel()
    with pytest.raises(TransferCancelled):
        transfer.wait(PATIENCE_S)
    assert transfer.wait_settled(PATIENCE_S)

    assert not len(reader.agent.quarantined("pool"))
    reader.pool[:] = 0
    assert reader.read([(0, 1)], [(0, 1)], lease).wait(PATIENCE_S)  # the way is open again
    time.sleep(0.2)
    assert not reader.pool[1:].any()


def test_a_killed_owner_ends_the_read_before_its_deadline(cluster):
    size = 256 * MIB
    owner, reader = cluster.pair(pool_bytes=size, block_bytes=MIB)
    lease = reader.accept(owner("grant"))
    in_the_middle(reader, lease, size).wait_settled(PATIENCE_S)
    transfers = [reader.read([(0, size)], [(0, size)], lease) for _ in range(8)]

    owner.kill()

    for transfer in transfers:
        try:
            done = transfer.wait(PATIENCE_S)
        except PeerLost:
            done = False
        assert done or transfer.error is not None
        assert transfer.wait_settled(PATIENCE_S)
    with pytest.raises(TransferError):
        reader.accept(owner_ticket(lease))


def test_an_owner_that_is_killed_among_small_reads_leaves_only_whole_ones(cluster, pool_content):
    owner, reader = cluster.pair()
    lease = reader.accept(owner("grant"))
    theirs = pool_content(len(reader.pool), SEED)[:BLOCK]
    for _ in range(20):  # the short ways are open from the second one on
        assert reader.read([(0, BLOCK)], [(0, BLOCK)], lease).wait(PATIENCE_S)
    killer = threading.Thread(target=owner.kill)
    transfers = []

    def read_on() -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            reader.pool[:BLOCK] = 0
            transfers[:] = [reader.read([(0, BLOCK)], [(0, BLOCK)], lease)]
            assert transfers[0].wait(PATIENCE_S)
            assert np.array_equal(reader.pool[:BLOCK], theirs)

    killer.start()
    with pytest.raises(TransferError):
        read_on()

    killer.join()
    assert all(transfer.wait_settled(PATIENCE_S) for transfer in transfers)
    assert not len(reader.agent.quarantined("pool"))


def owner_ticket(lease) -> str:
    return Ticket(lease.owner, lease.grant.epoch, lease.id).pack().hex()


def test_a_stopped_owner_is_given_up_at_the_deadline(cluster):
    owner, reader = cluster.pair()
    lease = reader.accept(owner("grant"))
    assert reader.read([(0, 1)], [(0, 1)], lease).wait(PATIENCE_S)

    owner.stop()
    began = time.monotonic()
    transfers = [reader.read([(0, MIB)], [(0, MIB)], lease, 0.5) for _ in range(3)]

    for transfer in transfers:
        try:
            transfer.wait(PATIENCE_S)  # who copies by itself needs no owner that runs
        except TransferTimedOut:
            assert time.monotonic() - began >= 0.5
        assert transfer.wait_settled(PATIENCE_S)
    owner.go_on()
    fresh = reader.accept(owner("grant"))
    assert await_read(reader, fresh)


def await_read(reader, lease) -> bool:
    """A way that failed may rest for a moment."""
    for _ in range(100):
        transfer = reader.read([(0, MIB)], [(0, MIB)], lease)
        try:
            return transfer.wait(PATIENCE_S)
        except TransferError:
            time.sleep(0.1)
    return False


def test_a_read_under_a_revoked_lease_moves_nothing(lasting):
    owner, reader = lasting
    ticket = owner("grant")
    lease = reader.accept(ticket)
    reader.pool[:] = 0

    owner("revoke", ticket)

    with pytest.raises(LeaseEnded):
        reader.read([(0, MIB)], [(0, MIB)], lease).wait(PATIENCE_S)
    assert not reader.pool.any()


def test_a_lease_that_was_not_kept_alive_expires(cluster):
    owner, reader = cluster.pair(lease={"ttl_s": 0.2})
    lease = reader.accept(owner("grant"))
    reader.agent._holder._heartbeats.remove(lease)  # as if they were lost
    reader.pool[:] = 0

    deadline = time.monotonic() + PATIENCE_S
    while owner("ended_leases") != ["EXPIRED"]:
        assert time.monotonic() < deadline

    with pytest.raises(LeaseEnded):
        reader.read([(0, MIB)], [(0, MIB)], lease).wait(PATIENCE_S)
    assert not reader.pool.any()


def test_heartbeats_keep_a_lease_alive_far_beyond_its_time(cluster):
    owner, reader = cluster.pair(lease={"ttl_s": 1.0})
    lease = reader.accept(owner("grant"))

    time.sleep(2.5)

    assert reader.read([(0, MIB)], [(0, MIB)], lease).wait(PATIENCE_S)
    lease.release()
    deadline = time.monotonic() + PATIENCE_S
    while owner("ended_leases") != ["RELEASED"]:
        assert time.monotonic() < deadline


def test_blocks_that_were_overwritten_are_named_and_not_read(lasting):
    owner, reader = lasting
    lease = reader.accept(owner("grant"))
    reader.pool[:] = 0

    owner("overwrite", [3, 5], SEED)

    with pytest.raises(StaleBlocks) as caught:
        reader.read([(0, 10 * BLOCK)], [(0, 10 * BLOCK)], lease).wait(PATIENCE_S)
    assert caught.value.blocks == (3, 5)
    assert not reader.pool.any()
    assert reader.read([(0, BLOCK)], [(0, BLOCK)], lease).wait(PATIENCE_S)  # others may be read
    lease.release()


def test_memory_that_was_registered_anew_is_not_taken_for_the_old(cluster):
    owner, reader = cluster.pair()
    lease = reader.accept(owner("grant"))
    assert reader.read([(0, MIB)], [(0, MIB)], lease).wait(PATIENCE_S)
    reader.pool[:] = 0

    owner("deregister")
    owner("register")

    with pytest.raises(LeaseEnded):
        reader.read([(0, MIB)], [(0, MIB)], lease).wait(PATIENCE_S)
    assert not reader.pool.any()
    fresh = reader.accept(owner("grant"))
    assert reader.read([(0, MIB)], [(0, MIB)], fresh).wait(PATIENCE_S)


def test_another_life_of_the_owner_is_not_taken_for_the_old(cluster):
    owner, reader = cluster.pair()
    ticket = owner("grant")
    lease = reader.accept(ticket)
    assert reader.read([(0, MIB)], [(0, MIB)], lease).wait(PATIENCE_S)
    owner.kill()
    reader.pool[:] = 0

    again = cluster.owner(seed=5)
    reader.agent.add_peer(again.metadata)

    with pytest.raises(LeaseEnded):
        reader.read([(0, MIB)], [(0, MIB)], lease).wait(PATIENCE_S)
    with pytest.raises(StaleEpoch):
        reader.accept(ticket)
    assert not reader.pool.any()
    fresh = reader.accept(again("grant"))
    assert reader.read([(0, MIB)], [(0, MIB)], fresh).wait(PATIENCE_S)


def test_who_does_not_know_the_token_reads_nothing(cluster):
    owner = cluster.owner()
    stranger = cluster.reader(token=b"another cluster's token")
    stranger.agent.add_peer(owner.metadata)

    with pytest.raises(AuthFailed):
        stranger.accept(owner("grant"))


@pytest.mark.parametrize(
    ("region", "start", "length"),
    [
        ("pool", 4 * MIB - 10, 11),
        ("pool", 2**64 - 8, 16),
        ("pool", 8 * BLOCK, BLOCK),  # a block that the lease does not cover
        ("elsewhere", 0, BLOCK),
    ],
)
def test_the_owner_refuses_what_the_lease_does_not_cover(lasting, region, start, length):
    owner, reader = lasting
    lease = reader.accept(owner("grant", list(range(8))))
    reader.pool[:] = 0

    with pytest.raises(AccessDenied):
        unchecked(reader, lease, region, start, length).wait(PATIENCE_S)
    assert not reader.pool.any()
    assert reader.read([(0, BLOCK)], [(0, BLOCK)], lease).wait(PATIENCE_S)
    lease.release()


def unchecked(reader, lease, region: str, start: int, length: int) -> Transfer:
    """Post a read without this side's own checks."""
    source = Extents(region, np.array([start], np.uint64), np.array([length], np.uint64))
    peer = reader.agent._peers.get(lease.owner)
    local = reader.agent._regions.get("pool")
    plan = Plan(peer, local, Extents.of("pool", [(0, length)]), source, None)
    transfer = Transfer(lease.owner, 1, length, PATIENCE_S)
    Reading(plan, transfer, False, time.monotonic).start(lease.grant)
    return transfer


def test_wrong_arguments_are_named_before_anything_moves(lasting):
    owner, reader = lasting
    lease = reader.accept(owner("grant"))

    with pytest.raises(InvalidValue, match="remote"):
        reader.read([(0, 1)], [(0, 1), (1, 1)], lease)
    with pytest.raises(InvalidValue, match="range 0"):
        reader.read([(0, 2)], [(0, 1)], lease)
    with pytest.raises(InvalidValue, match="extents"):
        reader.read([(len(reader.pool), 1)], [(0, 1)], lease)
    with pytest.raises(InvalidValue, match="extents"):
        reader.read([(0, 1)], [(len(reader.pool), 1)], lease)
    with pytest.raises(InvalidValue, match="timeout_s"):
        reader.read([(0, 1)], [(0, 1)], lease, 0.0)
    with pytest.raises(InvalidValue, match="at least one byte"):
        reader.read([], [], lease)
    lease.release()


def test_the_notification_of_a_read_comes_once_and_after_its_bytes(lasting):
    owner, reader = lasting
    lease = reader.accept(owner("grant"))
    owner("notifications", 0.0)

    for number in range(3):
        options = ReadOptions(notify=b"done %d" % number)
        assert reader.read([(0, MIB)], [(0, MIB)], lease, options=options).wait(PATIENCE_S)

    found: list = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < 3 and time.monotonic() < deadline:
        found += owner("notifications", 0.5)
    assert found == [["reader", (b"done %d" % number).hex()] for number in range(3)]
    lease.release()


def test_a_write_is_pulled_by_the_target_into_what_it_offered(cluster, pool_content):
    owner, reader = cluster.pair()
    reader.pool[:] = pool_content(len(reader.pool), 2)
    owner("add_peer", reader.agent.metadata().hex())
    lease = reader.accept(owner("offer", list(range(16))))
    source, into = Extents.of("pool", [(0, BLOCK), (BLOCK, 7)]), [(0, BLOCK), (BLOCK, 7)]

    transfer = reader.agent.write(source, Extents.of("pool", into), lease)

    assert transfer.wait(PATIENCE_S)
    assert owner("same_as", 2, 0, BLOCK + 7)
    assert owner("same_as", SEED, BLOCK + 7, len(reader.pool))
    assert not len(reader.agent.leased("pool"))


def test_a_write_beyond_what_was_offered_changes_nothing(cluster):
    owner, reader = cluster.pair()
    lease = reader.accept(owner("offer", [0]))
    source = Extents.of("pool", [(0, BLOCK)])

    with pytest.raises(AccessDenied):
        reader.agent.write(source, Extents.of("pool", [(BLOCK, BLOCK)]), lease).wait(PATIENCE_S)

    assert owner("same_as", SEED, 0, len(reader.pool))


def test_a_lease_is_for_reading_or_for_filling_and_not_for_both(lasting):
    owner, reader = lasting
    to_fill, to_read = reader.accept(owner("offer", [0])), reader.accept(owner("grant", [1]))
    first, second = Extents.of("pool", [(0, BLOCK)]), Extents.of("pool", [(BLOCK, BLOCK)])
    reader.pool[:] = 0

    with pytest.raises(InvalidValue, match="grant"):
        reader.agent.read(first, first, to_fill)
    with pytest.raises(InvalidValue, match="offer"):
        reader.agent.write(second, second, to_read)
    with pytest.raises((AccessDenied, LeaseEnded)):  # the owner says so too
        unchecked(reader, to_fill, "pool", 0, BLOCK).wait(PATIENCE_S)

    assert not reader.pool.any()
    to_fill.release()
    to_read.release()


def test_nothing_is_left_behind_when_an_agent_closes(cluster):
    before = set(threading.enumerate())
    owner, reader = cluster.pair()
    lease = reader.accept(owner("grant"))
    assert reader.read([(0, MIB)], [(0, MIB)], lease).wait(PATIENCE_S)

    reader.agent.close()

    assert set(threading.enumerate()) <= before
