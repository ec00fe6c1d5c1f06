"""The handle of a transfer: it ends once, tells why, and says when its destination is free."""

import threading

import pytest

from stafette.kvtransfer.errors import PeerLost, TransferCancelled, TransferTimedOut
from stafette.kvtransfer.transfer import Transfer, TransferState


def transfer(timeout_s=30.0) -> Transfer:
    return Transfer("p0", num_ranges=2, total_bytes=64, timeout_s=timeout_s)


def test_finished_transfer_is_done_and_settled():
    it = transfer()

    it.finish()

    assert it.wait()
    assert it.poll() is TransferState.DONE
    assert it.settled


def test_error_that_ended_it_is_raised_to_whoever_waits():
    it = transfer()

    it.finish(PeerLost("p0", "killed"))

    with pytest.raises(PeerLost, match="killed"):
        it.wait()
    assert it.poll() is TransferState.FAILED


def test_cancelled_transfer_is_not_settled_before_its_job_has_finished():
    it = transfer()
    interrupted = []
    it.started("tcp", lambda: interrupted.append(True))

    it.cancel()

    assert interrupted == [True]
    assert it.stop.value == 1
    assert it.poll() is TransferState.CANCELLED
    assert not it.settled
    it.finish()
    assert it.settled
    with pytest.raises(TransferCancelled):
        it.wait()


def test_bytes_that_all_arrive_after_the_deadline_do_not_make_it_done():
    it = transfer()
    it.started("tcp", lambda: None)

    it.expire()
    it.finish()

    assert it.poll() is TransferState.FAILED
    with pytest.raises(TransferTimedOut, match="reading with peer p0 took longer than 30 s"):
        it.wait()


def test_cancel_after_the_end_changes_nothing():
    it = transfer()
    it.finish()

    it.cancel()

    assert it.wait()
    assert it.stop.value == 0


def test_transfer_cancelled_before_it_started_interrupts_its_start():
    it = transfer()
    it.cancel()
    interrupted = []

    it.started("tcp", lambda: interrupted.append(True))

    assert interrupted == [True]


def test_wait_gives_up_after_its_own_time_without_ending_the_transfer():
    it = transfer()

    assert not it.wait(timeout_s=0.001)
    assert it.poll() is TransferState.PENDING


def test_waiting_thread_is_woken_by_the_end():
    it = transfer()
    found = []
    waiting = threading.Thread(target=lambda: found.append(it.wait(10)))
    waiting.start()

    it.finish()

    waiting.join(10)
    assert found == [True]


def test_callbacks_come_once_and_one_that_fails_does_not_stop_the_others(caplog):
    it = transfer()
    seen = []
    it.on_settled(lambda t: 1 // 0)
    it.on_settled(seen.append)

    it.finish()
    it.on_settled(seen.append)

    assert seen == [it, it]
    assert it.wait()
    assert "ZeroDivisionError" in caplog.text


def test_telemetry_counts_what_has_arrived():
    it = transfer()
    it.started("shm", lambda: None)

    it.advance(16)
    it.finish(PeerLost("p0", "killed"))

    told = it.telemetry()
    assert (told.transport, told.num_ranges) == ("shm", 2)
    assert (told.moved_bytes, told.total_bytes) == (16, 64)
    assert told == it.telemetry()


def test_every_thread_that_waits_is_woken_and_none_that_gave_up_is_remembered():
    it = transfer()
    found = []
    waiting = [threading.Thread(target=lambda: found.append(it.wait(10))) for _ in range(5)]
    for thread in waiting:
        thread.start()
    for _ in range(100):
        assert not it.wait(timeout_s=0.0001)

    it.finish()

    for thread in waiting:
        thread.join(10)
    assert found == [True] * 5
    assert it._ended._waiters == []


def test_two_ends_at_once_wake_each_waiting_thread_once():
    for _ in range(50):
        it = transfer()
        waiting = [threading.Thread(target=it.wait_settled, args=(10,)) for _ in range(3)]
        ending = [threading.Thread(target=it.cancel), threading.Thread(target=it.finish)]
        for thread in waiting + ending:
            thread.start()
        for thread in waiting + ending:
            thread.join(10)
            assert not thread.is_alive()


def test_thread_that_waits_is_lent_to_whoever_works_on_it():
    it = transfer()
    lent_until = []

    def lend(until):
        lent_until.append(until)
        it.finish()

    it.started("tcp", lambda: None, lend)

    assert it.wait(10)
    assert it.wait(10)
    assert len(lent_until) == 1
    assert lent_until[0] == pytest.approx(it.posted + 10, abs=5)


def test_thread_that_is_not_used_waits_for_its_time():
    it = transfer()
    it.started("tcp", lambda: None, lambda until: None)

    assert not it.wait(timeout_s=0.001)
    it.cancel()
    with pytest.raises(TransferCancelled):
        it.wait()
