"""The handle of a job: outcomes that become final once, deadlines, callbacks."""

import threading

import pytest

from stafette.kvtransfer.tiers.expiry import Expiry
from stafette.kvtransfer.tiers.job import BlockJob, Outcome

HASHES = [bytes([i]) * 16 for i in range(4)]


class FakeClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def job():
    return BlockJob(HASHES, 5.0)


def test_job_is_done_when_the_last_block_is(job):
    job.settle([0, 1, 2], Outcome.DONE)
    assert not job.done
    assert not job.wait(0)

    job.settle([3], Outcome.MISSING)

    assert job.done
    assert job.wait(0)
    assert job.counts() == {Outcome.DONE: 3, Outcome.MISSING: 1}


def test_only_blocks_without_a_gap_are_ready(job):
    job.settle([0, 2, 3], Outcome.DONE)
    assert job.num_ready == 1

    job.settle([1], Outcome.PRESENT)

    assert job.num_ready == 4


def test_final_outcome_stays(job):
    assert job.settle([0], Outcome.CORRUPT) == 1

    assert job.settle([0, 1], Outcome.DONE) == 1

    assert job.outcomes[:2] == (Outcome.CORRUPT, Outcome.DONE)


def test_cancelling_ends_what_waits_and_not_what_is_moved(job):
    assert job.claim([0, 1]) == [0, 1]

    job.cancel()

    assert job.outcomes == (Outcome.MOVING,) * 2 + (Outcome.CANCELLED,) * 2
    assert job.claim([2, 3]) == []
    job.settle([0, 1], Outcome.DONE)
    assert job.done
    assert job.num_ready == 2


def test_callback_comes_once_or_at_once(job, caplog):
    calls = []
    job.on_done(lambda ended: calls.append(ended))
    job.on_done(lambda ended: 1 / 0)

    job.settle(range(4), Outcome.DONE)
    job.settle(range(4), Outcome.DONE)
    job.cancel()

    assert calls == [job]
    job.on_done(lambda ended: calls.append("late"))
    assert calls == [job, "late"]
    assert "a callback of a job of 4 blocks failed" in caplog.text


def test_job_of_nothing_is_done():
    assert BlockJob([], 1.0).done


def test_overdue_job_ends_and_others_go_on():
    clock = FakeClock()
    expiry = Expiry(lambda: None, clock)
    overdue, other = BlockJob(HASHES, 1.0, clock), BlockJob(HASHES, 60.0, clock)
    for job in (overdue, other):
        expiry.watch(job)

    clock.now += 2
    expiry.watch(BlockJob(HASHES[:1], 1.0, lambda: 99.0))  # due already: the thread looks again

    assert overdue.wait(10)
    assert set(overdue.outcomes) == {Outcome.TIMED_OUT}
    assert not other.done
    expiry.close()


def test_all_jobs_can_be_cancelled():
    expiry = Expiry(lambda: None)
    jobs = [BlockJob(HASHES, 60.0) for _ in range(3)]
    for job in jobs:
        expiry.watch(job)
    jobs[0].settle(range(4), Outcome.DONE)

    expiry.cancel_all()

    assert [job.outcomes[0] for job in jobs] == [Outcome.DONE] + [Outcome.CANCELLED] * 2
    expiry.close()


def test_expiry_looks_at_other_things_too():
    looked = threading.Event()
    expiry = Expiry(looked.set)

    assert looked.wait(10)
    expiry.close()
