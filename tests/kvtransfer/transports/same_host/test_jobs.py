"""The life of a job: who runs it, what ends it, and that it ends once."""

import threading

import numpy as np
import pytest

from stafette.kvtransfer.errors import (
    PeerLost,
    TransferCancelled,
    TransferError,
    TransferTimedOut,
    TransportUnavailable,
)

MIB = 1 << 20
LONG = 20 * MIB  # more than one native call moves


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
