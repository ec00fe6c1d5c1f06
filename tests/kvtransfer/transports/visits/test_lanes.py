"""A link of lanes: who does a job, who is woken, and how each of them ends."""

import ctypes
import threading
import time

import pytest

from stafette.kvtransfer.errors import (
    LeaseEnded,
    PeerLost,
    TransferCancelled,
    TransferError,
    TransferTimedOut,
)
from stafette.kvtransfer.transport import ReadJob
from stafette.kvtransfer.transports.visits.lanes import LaneLink, Turn, Worker

PATIENCE_S = 10.0


class Job(ReadJob):
    def __init__(self, act=None, timeout_s: float = 30.0, writes: bool = False) -> None:
        self.writes = writes  # before it waits
        self.act = act  # what the worker does with it; None: wait until it is interrupted
        self.stop = ctypes.c_int32(0)
        self.deadline = time.monotonic() + timeout_s
        self.begun = threading.Event()
        self.ends: list[TransferError | None] = []
        self.over = threading.Event()

    def advance(self, nbytes):
        raise AssertionError("no worker here moves bytes")

    def finish(self, error=None):
        self.ends.append(error)
        self.over.set()

    def end(self) -> TransferError | None:
        assert self.over.wait(PATIENCE_S)
        assert len(self.ends) == 1
        return self.ends[0]


class WaitingWorker(Worker):
    made: list["WaitingWorker"] = []

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.may_wake = threading.Event()
        self.may_wake.set()
        self.closed = 0
        self.broken = 0  # jobs that ended in a way after which it is closed
        self.made.append(self)

    def work(self, turn):
        job = turn.job
        self.woken.clear()
        if job.writes:
            turn.begin()
        job.begun.set()
        if job.act is not None:
            return self.act(job)
        self.broken += 1
        turn.check()
        assert self.woken.wait(PATIENCE_S)
        assert self.may_wake.wait(PATIENCE_S)
        raise ConnectionResetError("what I waited on was shut down")

    def act(self, job):
        try:
            return job.act()
        except TransferError:
            raise
        except Exception:
            self.broken += 1
            raise

    def interrupt(self):
        self.woken.set()

    def close(self):
        self.closed += 1


@pytest.fixture
def link():
    WaitingWorker.made = []
    before = set(threading.enumerate())
    link = LaneLink("p0", WaitingWorker, lanes=2)
    yield link
    link.close()
    assert set(threading.enumerate()) <= before
    assert all(worker.closed == 1 + worker.broken for worker in WaitingWorker.made)


def done():
    return True


def test_jobs_of_one_lane_after_the_other_use_its_worker_again(link):
    for _ in range(5):
        job = Job(done)
        link.start(job)
        assert job.end() is None
        time.sleep(0.01)  # the lane is idle again

    assert len(WaitingWorker.made) == 1


def test_second_job_does_not_wait_for_the_first_and_the_third_does(link):
    jobs = [Job(), Job(), Job()]
    for job in jobs:
        link.start(job)

    assert all(job.begun.wait(PATIENCE_S) for job in jobs[:2])
    assert not jobs[2].begun.wait(0.05)
    stop(link, jobs[0])
    assert jobs[2].begun.wait(PATIENCE_S)


def stop(link, job):
    job.stop.value = 1
    link.interrupt(job)


def test_interrupted_job_is_cancelled_and_no_other_one(link):
    first, second = Job(), Job()
    link.start(first)
    link.start(second)
    assert first.begun.wait(PATIENCE_S)
    assert second.begun.wait(PATIENCE_S)

    stop(link, first)

    assert isinstance(first.end(), TransferCancelled)
    assert not second.over.wait(0.05)


def test_waiting_job_is_cancelled_at_once(link):
    busy = [Job(), Job()]
    for job in busy:
        link.start(job)
    waiting = Job()
    link.start(waiting)

    stop(link, waiting)

    assert isinstance(waiting.end(), TransferCancelled)
    assert not waiting.begun.is_set()


def test_job_that_was_stopped_before_it_came_is_not_begun(link):
    job = Job()
    job.stop.value = 1
    link.interrupt(job)

    link.start(job)

    assert isinstance(job.end(), TransferCancelled)


def test_job_stopped_at_its_deadline_has_timed_out(link):
    job = Job(timeout_s=0.05)
    link.start(job)
    time.sleep(0.06)

    stop(link, job)

    assert isinstance(job.end(), TransferTimedOut)
    assert "took longer than 0.0" in str(job.end())


def test_job_whose_turn_comes_after_its_deadline_is_not_begun(link):
    busy = [Job(), Job()]
    for job in busy:
        link.start(job)
    late = Job(timeout_s=0.01)
    link.start(late)
    time.sleep(0.02)

    stop(link, busy[0])

    assert isinstance(late.end(), TransferTimedOut)
    assert not late.begun.is_set()


@pytest.mark.parametrize(
    ("raised", "ended"),
    [
        (LeaseEnded(7, "expired"), LeaseEnded),
        (ConnectionResetError("reset"), PeerLost),
        (TimeoutError(), TransferTimedOut),
        (ZeroDivisionError(), TransferError),
    ],
)
def test_what_a_worker_raises_ends_the_job_and_the_lane_goes_on(link, raised, ended):
    def fail():
        raise raised

    job, next_job = Job(fail), Job(done)
    link.start(job)
    link.start(next_job)

    assert type(job.end()) is ended
    assert next_job.end() is None


def test_close_ends_all_jobs_with_peer_lost(link):
    jobs = [Job() for _ in range(5)]
    for job in jobs:
        link.start(job)

    link.close()

    assert all(isinstance(job.end(), PeerLost) for job in jobs)
    late = Job()
    link.start(late)
    assert isinstance(late.end(), PeerLost)


def test_close_races_with_jobs_that_begin_and_none_is_left(link):
    for _ in range(50):
        racing = LaneLink("p0", WaitingWorker, lanes=2)
        job = Job()
        starting = threading.Thread(target=racing.start, args=(job,))
        starting.start()
        racing.close()
        starting.join()
        assert isinstance(job.end(), PeerLost)


def test_job_that_somebody_else_finishes_is_left_to_it(link):
    job = Job(lambda: False)
    link.start(job)
    assert job.begun.wait(PATIENCE_S)

    assert not job.over.wait(0.05)


def test_callback_of_a_job_may_close_the_link(link):
    job = Job(done)
    finish = job.finish
    job.finish = lambda error=None: (link.close(), finish(error))

    link.start(job)

    assert job.end() is None


def test_job_that_writes_nothing_yet_ends_before_its_worker_wakes(link):
    job = Job()
    link.start(job)
    assert job.begun.wait(PATIENCE_S)
    WaitingWorker.made[0].may_wake.clear()

    stop(link, job)

    assert isinstance(job.end(), TransferCancelled)
    WaitingWorker.made[0].may_wake.set()
    next_job = Job(done)
    link.start(next_job)
    assert next_job.end() is None
    assert len(job.ends) == 1


def test_job_that_writes_is_not_over_before_its_worker_has_left(link):
    job = Job(writes=True)
    link.start(job)
    assert job.begun.wait(PATIENCE_S)
    WaitingWorker.made[0].may_wake.clear()

    stop(link, job)

    assert not job.over.wait(0.05)
    WaitingWorker.made[0].may_wake.set()
    assert isinstance(job.end(), TransferCancelled)


def test_job_that_was_given_up_never_begins_to_write():
    job = Job()
    turn = Turn(job, LaneLink("p0", WaitingWorker, lanes=1))

    turn.give_up(TransferCancelled("p0"))

    with pytest.raises(TimeoutError):
        turn.begin()
    turn.finish(None)
    assert isinstance(job.end(), TransferCancelled)
