"""What shm and process_vm have in common, each with the native library and without it."""

import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stafette.kvtransfer.errors import (
    AccessDenied,
    ChecksumMismatch,
    InvalidValue,
    LeaseEnded,
    MalformedMessage,
    PeerLost,
    StaleBlocks,
    StaleEpoch,
    TransferCancelled,
    TransferError,
    TransferTimedOut,
    TransportUnavailable,
)
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.transport import Handover, PeerInfo
from stafette.kvtransfer.transports.same_host.config import SameHostConfig

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


# The promise


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


# The owner's side


def test_only_a_peer_with_a_lease_gets_a_region(world):
    name = world.owner.name
    nobody = [99, Extents.of("kv", [(0, 1)]).pack()]

    for operation in ("open", "why", "digest"):
        with pytest.raises(LeaseEnded):
            world.control.call(f"{name}.{operation}", nobody, 1.0)


def test_region_that_is_not_shown_is_refused(world):
    grant = world.grant()
    world.owner.detach(world.region)

    with pytest.raises(AccessDenied, match="cannot read it"):
        world.read([(0, 1)], grant=grant)


@pytest.mark.parametrize("payload", [None, [1], [-1, ["kv", b"", b""]], ["1", ["kv", b"", b""]]])
def test_malformed_questions_are_refused(world, payload):
    for operation in ("open", "why", "digest"):
        with pytest.raises(MalformedMessage):
            world.control.call(f"{world.owner.name}.{operation}", payload, 1.0)


def test_region_is_asked_for_once(world):
    grant = world.grant()

    for _ in range(3):
        world.read([(0, BLOCK)], grant=grant)
        world.read([(0, MIB)], grant=world.grant())

    assert world.control.asked == [f"{world.owner.name}.open"]


def test_malformed_answer_of_the_owner_speaks_against_the_way(world):
    world.control.operations[f"{world.owner.name}.open"] = lambda *_: Handover(["x"], [])

    with pytest.raises(TransportUnavailable, match=world.owner.name):
        world.read([(0, 1)])


def test_ledger_that_is_none_speaks_against_the_way(world):
    ask = world.owner.operations()[f"{world.owner.name}.open"]

    def swapped(peer, payload):
        handed = ask(peer, payload)
        counts, ledger, *rest = handed.fds
        os.dup2(counts, ledger)
        return Handover(handed.answer, [counts, ledger, *rest])

    world.control.operations[f"{world.owner.name}.open"] = swapped

    with pytest.raises(TransportUnavailable):
        world.read([(0, 1)])


# Jobs and threads


def test_small_job_runs_in_the_callers_thread_and_a_large_one_does_not(world):
    world.read([(0, 1)])  # opens the region

    small, large = world.read([(0, 256 << 10)]), world.read([(0, (256 << 10) + 1)])

    assert small.finished_by is threading.current_thread()
    assert large.finished_by is not threading.current_thread()


def test_many_threads_read_through_one_link(world):
    grant, done = world.grant(), []
    part = 4 * MIB // 8

    def read(number):
        for start in range(number * part, (number + 1) * part, part // 4):
            world.read([(start, part // 4)], grant=grant)
            done.append(number)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(done) == 32
    assert np.array_equal(world.pool, world.theirs)


def test_job_that_is_stopped_in_the_middle_writes_no_more_when_it_is_over(make_world, kind, native):
    world = make_world(kind, native, nbytes=LONG)
    job = world.job([(0, LONG)])

    def stop(job):
        job.stop.value = 1
        world.link.interrupt(job)

    job.on_advance = stop
    world.start(job)

    with pytest.raises(TransferCancelled):
        job.wait()
    moved = job.moved
    assert 0 < moved < LONG
    assert np.array_equal(world.pool[:moved], world.theirs[:moved])
    world.pool[:] = 0
    world.read([(0, 1)])  # the link works on
    assert not world.pool[1:].any()


def test_job_that_was_stopped_before_it_began_moves_nothing(world):
    grant = world.grant()
    world.read([(0, 1)], grant=grant)
    world.pool[:] = 0

    for size in (1, MIB):
        job = world.job([(0, size)], grant=grant)
        job.stop.value = 1
        with pytest.raises(TransferCancelled):
            world.start(job).wait()

    assert not world.pool.any()


class Barrier:
    """Holds the owner's answers to an operation back until `open`."""

    def __init__(self, world, operation):
        self.reached = threading.Event()
        self._open = threading.Event()
        self._operation = f"{world.owner.name}.{operation}"
        world.control.before = self._wait

    def open(self):
        self._open.set()

    def _wait(self, operation):
        if operation == self._operation:
            self.reached.set()
            assert self._open.wait(30.0)


@pytest.mark.parametrize(("operation", "verify"), [("open", False), ("digest", True)])
def test_interrupted_job_ends_at_once_while_the_owner_is_silent(world, operation, verify):
    barrier = Barrier(world, operation)
    job = world.start(world.job([(0, MIB)], verify=verify))
    assert barrier.reached.wait(30.0)

    job.stop.value = 1
    world.link.interrupt(job)

    assert job.over
    assert isinstance(job.error, TransferCancelled)
    before = world.pool.copy()
    barrier.open()
    world.read([(MIB, 1)])
    assert np.array_equal(world.pool[:MIB], before[:MIB])


def test_interrupting_a_job_that_is_over_changes_nothing(world):
    job = world.read([(0, MIB)])

    world.link.interrupt(job)

    assert job.error is None


def test_jobs_wait_for_no_more_threads_than_there_are(make_world, kind, native):
    world = make_world(kind, native, threads=2)
    barrier = Barrier(world, "open")
    jobs = [world.start(world.job([(i * 4, 4)])) for i in range(5)]
    assert barrier.reached.wait(30.0)

    named = [t for t in threading.enumerate() if t.name.startswith(f"{kind}-owner-")]
    barrier.open()

    assert len(named) == 2
    for job in jobs:
        job.wait()
    assert np.array_equal(world.pool[:20], world.theirs[:20])


def test_closing_a_link_ends_what_waits_and_what_is_at_work(make_world, kind, native):
    world = make_world(kind, native, nbytes=LONG, threads=1)
    grant = world.grant()
    working, waiting = (world.job([(0, LONG)], grant=grant) for _ in range(2))
    begun, closed = threading.Event(), threading.Event()

    def hold(job):
        begun.set()
        assert closed.wait(30.0)

    working.on_advance = hold
    world.start(working)
    world.start(waiting)
    assert begun.wait(30.0)

    closing = threading.Thread(target=world.link.close)
    closing.start()
    with pytest.raises(PeerLost):
        waiting.wait()
    closed.set()

    with pytest.raises(PeerLost):
        working.wait()
    closing.join(30.0)
    assert working.moved < LONG
    assert not any(t.name.startswith(f"{kind}-owner-") for t in threading.enumerate())


def test_closed_link_takes_no_jobs(world):
    world.read([(0, 1)])
    world.link.close()
    world.link.close()

    for size in (1, MIB):
        with pytest.raises(PeerLost):
            world.read([(0, size)])


def test_closed_link_does_not_keep_what_the_owner_answers_late(world):
    before = world.open_files()
    barrier = Barrier(world, "open")
    job = world.start(world.job([(0, 1)]))
    assert barrier.reached.wait(30.0)

    world.link.close()
    barrier.open()
    world.link._workers.join(30.0)

    assert isinstance(job.error, PeerLost)
    assert world.open_files() == before


def test_failed_question_ends_the_job_with_its_error(world):
    def refuse(operation):
        raise TransferTimedOut("owner", operation, 5.0)

    world.control.before = refuse

    with pytest.raises(TransferTimedOut):
        world.read([(0, 1)])


def test_unforeseen_failure_ends_the_job_too(world, caplog):
    def fail(operation):
        raise ZeroDivisionError

    world.control.before = fail

    with pytest.raises(TransferError, match="ZeroDivisionError"):
        world.read([(0, 1)])
    assert "reading owner/kv failed" in caplog.text


def test_unforeseen_failure_of_a_small_job_ends_it_too(world, caplog, monkeypatch):
    world.read([(0, 1)])
    (opened,) = world.link._opened.values()
    monkeypatch.setattr(type(opened), "read", lambda self, job: 1 // 0)

    with pytest.raises(TransferError, match="ZeroDivisionError"):
        world.read([(0, 1)])


def test_job_that_was_taken_away_in_the_queue_asks_nobody(make_world, kind, native):
    world = make_world(kind, native, threads=1)
    barrier = Barrier(world, "open")
    first = world.start(world.job([(0, 1)]))
    assert barrier.reached.wait(30.0)
    queued = [world.start(world.job([(0, 1)])) for _ in range(3)]

    for job in queued:
        world.link.interrupt(job)
    barrier.open()
    first.wait()
    world.read([(0, MIB)])

    assert all(isinstance(job.error, TransferCancelled) for job in queued)
    assert world.control.asked == [f"{kind}.open"]


def test_without_threads_another_way_is_asked_for(world, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    with pytest.raises(TransportUnavailable, match="no thread"):
        world.read([(0, 1)])


# Checksums


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


# What is told before


def test_peer_that_can_be_read_is_reachable(world):
    assert world.reader.unreachable(world.peer, world.region.info, world.local) == ""
    assert world.reader.capabilities.same_host


def test_reasons_for_which_a_peer_cannot_be_read(world):
    far = PeerInfo("owner", 7, "another host")
    info, local = world.region.info, world.local

    def reason(peer=world.peer, **changes):
        return world.reader.unreachable(peer, replace(info, **changes), local)

    assert reason(far) == "it runs on another host"
    assert reason(kind="cuda") == "region kv is cuda memory"
    assert reason(hints={world.owner.name: 2}).startswith("it shows region kv in version 2")
    assert reason(hints={})


@pytest.mark.parametrize("wrong", [{"inline_bytes": -1}, {"threads": 0}, {"open_timeout_s": 0.0}])
def test_wrong_options_are_named(wrong):
    with pytest.raises(InvalidValue, match=next(iter(wrong))):
        SameHostConfig(**wrong)


# Nothing is left


def test_closed_link_has_given_back_its_descriptors_and_mappings(world):
    before = world.open_files()
    world.read([(0, MIB)])
    assert world.open_files() > before

    world.link.close()

    assert world.open_files() == before


def test_failed_reads_keep_nothing_open(world):
    before = world.open_files()
    grant = world.grant()
    world.read([(0, 1)], grant=grant)
    world.gate.end(grant)
    jobs = [world.start(world.job([(0, size)], grant=grant)) for size in (1, MIB)]
    for job in jobs:
        with pytest.raises(LeaseEnded):
            job.wait()

    world.link.close()

    assert world.open_files() == before


def test_owner_gives_back_the_descriptors_of_a_region(world):
    num_files, _ = world.open_files()
    region = world.register("other", world.make_memory())
    assert world.open_files()[0] > num_files

    world.deregister(region)
    if world.owner.name == "shm":
        region.shared.close()
    del region

    assert world.open_files()[0] == num_files


def test_transport_gives_everything_back_at_its_end(world):
    world.read([(0, 1)])
    num_files, _ = world.open_files()

    world.reader.close()
    world.reader.close()
    world.owner.close()

    assert world.open_files()[0] < num_files
    assert not any("-owner-" in thread.name for thread in threading.enumerate())
    with pytest.raises(PeerLost):
        world.read([(0, 1)])


def test_older_generation_of_a_region_is_dropped_when_the_new_one_is_opened(world):
    world.read([(0, BLOCK)])
    _, mapped = world.open_files()

    world.deregister(world.region)
    world.region = world.register("kv", world.memory, generation=2)
    world.read([(0, BLOCK)])

    assert list(world.link._opened) == [("kv", 2)]
    assert world.open_files()[1] == mapped


def test_region_that_is_gone_is_dropped_when_another_one_is_read(world):
    other = world.register("other", world.make_memory(), generation=9)
    world.read([(0, BLOCK)])
    world.deregister(world.region)

    world.read([(0, MIB)], grant=world.grant(region=other))

    assert list(world.link._opened) == [("other", 9)]
    world.deregister(other)
    world.region = world.register("kv", world.memory, generation=10)
