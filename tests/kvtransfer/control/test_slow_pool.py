"""Threads for operations that wait: few, reused, and no reason for a process to stay."""

import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from stafette.kvtransfer.control.slow_pool import SlowPool


@pytest.fixture
def pool():
    found = SlowPool(2)
    yield found
    found.close(20)


def test_answers_and_errors_come_back(pool):
    good, bad = pool.submit(lambda: 7), pool.submit(lambda: 1 / 0)

    assert good.result(20) == 7
    with pytest.raises(ZeroDivisionError):
        bad.result(20)


def test_no_more_threads_than_allowed_and_the_rest_waits(pool):
    gate, threads, together = threading.Event(), set(), threading.Semaphore(0)

    def work():
        threads.add(threading.current_thread())
        together.release()
        assert gate.wait(20)

    answers = [pool.submit(work) for _ in range(6)]
    for _ in range(2):
        together.acquire()
    assert not together.acquire(blocking=False)
    gate.set()
    for answer in answers:
        answer.result(20)

    assert len(threads) == 2


def test_a_thread_that_is_free_is_used_again(pool):
    threads = {pool.submit(threading.current_thread).result(20)}
    for _ in range(20):
        threads.add(pool.submit(threading.current_thread).result(20))

    assert len(threads) <= 2


def test_the_end_cancels_what_waits_and_refuses_what_comes():
    pool, gate, entered = SlowPool(1), threading.Event(), threading.Event()

    def work():
        entered.set()
        assert gate.wait(20)
        return "done"

    running = pool.submit(work)
    assert entered.wait(20)
    waiting = pool.submit(lambda: "never")

    assert pool.close(0.02) == 1
    with pytest.raises(CancelledError):
        waiting.result(20)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(lambda: 1)
    gate.set()
    assert running.result(20) == "done"
    assert pool.close(20) == 0


def test_it_can_be_closed_from_within():
    pool = SlowPool(1)

    assert pool.submit(lambda: pool.close(20)).result(20) == 0


def test_what_is_cancelled_in_time_is_not_begun():
    pool, gate, entered, begun = SlowPool(1), threading.Event(), threading.Event(), []
    pool.submit(lambda: (entered.set(), gate.wait(20)))
    assert entered.wait(20)

    cancelled = pool.submit(lambda: begun.append(1))
    assert cancelled.cancel()
    gate.set()
    pool.submit(lambda: None).result(20)

    assert begun == []
    pool.close(20)


def test_without_any_thread_nothing_is_taken_in(pool, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            pool.submit(lambda: 1)

    assert pool.submit(lambda: 2).result(20) == 2


def test_with_one_thread_a_second_is_not_needed(pool, monkeypatch):
    assert pool.submit(lambda: 1).result(20) == 1

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    answers = [pool.submit(lambda: 2) for _ in range(4)]

    assert [answer.result(20) for answer in answers] == [2] * 4


def test_an_operation_that_never_ends_keeps_no_process_alive():
    script = (
        "import threading\n"
        "from stafette.kvtransfer.control.slow_pool import SlowPool\n"
        "pool, entered = SlowPool(1), threading.Event()\n"
        "pool.submit(lambda: (entered.set(), threading.Event().wait()))\n"
        "entered.wait()\n"
        "print(pool.close(0.01))\n"
    )

    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60
    )

    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
