"""Who waits for a job receives its bytes himself, and nobody depends on his going on."""

import random
import threading
import time

import numpy as np
import pytest

from stafette.kvtransfer.errors import PeerLost, TransferCancelled, TransferTimedOut

MIB = 1 << 20
KIB = 1 << 10
BLOCK = 4 * KIB
FOREVER_S = 20.0


@pytest.fixture(params=[True, False], ids=["native", "pure"])
def held(request, ends, proxies, pairs):
    """Make a pair whose owner's bytes stop on the way after so many; return it and the proxy."""

    def make(hold_after=300 * KIB, nbytes=4 * MIB):
        options = {"streams": 1, "native": request.param}
        owner = ends(**options)
        proxy = proxies(owner)
        proxy.hold_after = hold_after
        return pairs(nbytes, owner=owner, through=proxy, **options), proxy

    return make


def lend(pair, job, seconds=FOREVER_S) -> float:
    """Lend this thread; return for how long it was away."""
    began = time.monotonic()
    pair.link.lend(job, began + seconds)
    return time.monotonic() - began


@pytest.fixture
def lend_beside(eventually):
    """Lend another thread, as soon as the session's own has nothing to do."""
    threads = []

    def lend_again(pair, job):
        while not job.finished.is_set():
            lend(pair, job)
            job.finished.wait(0.01)

    def start(pair, job) -> threading.Thread:
        thread = threading.Thread(target=lend_again, args=(pair, job))
        thread.start()
        threads.append(thread)
        eventually(lambda: pair.link._streams[0]._session._lender)
        return thread

    yield start
    for thread in threads:
        thread.join(FOREVER_S)
        assert not thread.is_alive()


@pytest.fixture
def stuck(eventually):
    """Wait until a job has got what comes, and the session's own thread expects no more soon."""

    def wait(pair, job) -> None:
        session = pair.link._streams[0]._session
        eventually(lambda: job.moved and not session._role.locked())

    return wait


def connect(pair) -> None:
    """Have a connection, on which nothing is under way."""
    assert pair.read((0, 0, 1)).outcome() is None


def test_job_finishes_in_the_thread_that_waits_for_it(held, stuck):
    pair, proxy = held(2_000)
    connect(pair)
    job = pair.read((0, 0, BLOCK))
    stuck(pair, job)
    finished_in = {}
    note(job, finished_in)
    threading.Timer(0.05, proxy.release).start()

    lend(pair, job)

    assert finished_in[job] is threading.current_thread()
    assert job.outcome(0) is None


def test_other_jobs_go_on_in_the_thread_that_waits(held):
    pair, proxy = held()
    connect(pair)
    first, other, last = pair.read(), pair.read((0, 0, MIB)), pair.read((0, 0, 1))
    assert proxy.reached.wait(FOREVER_S)
    proxy.release()

    lend(pair, last)

    assert [job.outcome() for job in (last, first, other)] == [None] * 3
    assert pair.arrived()


def test_lent_thread_ends_no_job_but_its_own(held, stuck):
    pair, proxy = held(2_000)
    connect(pair)
    first, mine = pair.read((0, 0, BLOCK)), pair.read((0, 0, 64 * KIB))
    stuck(pair, first)
    finished_in = {}

    for job in (first, mine):
        note(job, finished_in)
    threading.Timer(0.05, proxy.release).start()
    lend(pair, mine)

    assert [first.outcome(), mine.outcome()] == [None, None]
    assert finished_in[mine] is threading.current_thread()
    assert finished_in[first] is pair.link._streams[0]._thread


def note(job, finished_in):
    """Let a job tell in which thread it finishes."""
    finish = job.finish

    def finish_here(error=None):
        finished_in[job] = threading.current_thread()
        finish(error)

    job.finish = finish_here


def test_end_of_a_job_in_a_lent_thread_may_close_the_link(held, stuck):
    pair, proxy = held(2_000)
    connect(pair)
    job = pair.read((0, 0, BLOCK))
    stuck(pair, job)
    finish, took_s = job.finish, []

    def close(error=None):
        began = time.monotonic()
        pair.link.close()
        took_s.append(time.monotonic() - began)
        finish(error)

    job.finish = close
    threading.Timer(0.05, proxy.release).start()
    lend(pair, job)

    assert job.outcome(0) is None
    assert took_s[0] < 4


def test_thread_comes_back_at_its_time_and_the_job_goes_on_without_it(held, stuck):
    pair, proxy = held()
    connect(pair)
    job = pair.read()
    stuck(pair, job)

    away_s = lend(pair, job, seconds=0.1)

    assert away_s >= 0.1
    assert not job.finished.is_set()
    proxy.release()
    assert job.outcome() is None
    assert pair.arrived()


def test_cancel_brings_the_thread_back(held, lend_beside):
    pair, proxy = held()
    connect(pair)
    job, other = pair.read(), pair.read((0, 0, BLOCK))
    assert proxy.reached.wait(FOREVER_S)
    thread = lend_beside(pair, other)

    pair.cancel(other)

    thread.join(FOREVER_S)
    assert isinstance(other.outcome(0.5), TransferCancelled)
    assert not job.finished.is_set()
    proxy.release()
    assert job.outcome() is None


def test_cancel_of_what_it_receives_ends_that_at_once(held, lend_beside):
    pair, proxy = held()
    connect(pair)
    job, other = pair.read(), pair.read((0, 0, BLOCK))
    assert proxy.reached.wait(FOREVER_S)
    lend_beside(pair, other)

    pair.cancel(job)

    assert isinstance(job.outcome(), TransferCancelled)
    pair.into.memory[:] = 0
    proxy.release()
    assert other.outcome() is None
    assert not pair.into.memory[BLOCK:].any()


def test_deadline_of_any_job_is_kept_while_a_thread_is_lent(held, lend_beside):
    pair, proxy = held()
    connect(pair)
    job, other = pair.read(), pair.read((0, 0, BLOCK), timeout_s=0.3)
    assert proxy.reached.wait(FOREVER_S)
    lend_beside(pair, job)

    late = pair.read((0, 0, BLOCK), timeout_s=0.2)

    assert isinstance(late.outcome(), TransferTimedOut)
    assert isinstance(other.outcome(), TransferTimedOut)
    proxy.release()
    assert job.outcome() is None


def test_cut_connection_brings_the_thread_back(held, lend_beside):
    pair, proxy = held()
    connect(pair)
    job = pair.read()
    assert proxy.reached.wait(FOREVER_S)
    thread = lend_beside(pair, job)

    proxy.cut()

    thread.join(FOREVER_S)
    assert isinstance(job.outcome(), PeerLost)
    proxy.release()
    assert pair.read().outcome() is None


def test_closed_link_brings_the_thread_back(held, lend_beside):
    pair, proxy = held()
    connect(pair)
    job = pair.read()
    assert proxy.reached.wait(FOREVER_S)
    lend_beside(pair, job)

    pair.link.close()

    assert isinstance(job.outcome(0), PeerLost)


def test_interrupt_of_the_thread_ends_the_connection_and_not_the_stream(held, stuck):
    """As when somebody presses Ctrl-C: nobody knows what was left half done."""
    pair, proxy = held()
    connect(pair)
    job = pair.read()
    stuck(pair, job)
    job.advance = interrupted
    threading.Timer(0.05, proxy.release).start()

    with pytest.raises(KeyboardInterrupt):
        lend(pair, job)

    assert isinstance(job.outcome(), PeerLost)
    assert pair.read().outcome() is None
    assert pair.arrived()


def interrupted(num_bytes):
    if threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def test_thread_is_not_kept_by_what_is_over_or_not_known(pairs):
    pair = pairs()
    job, unknown = pair.read(), pair.job()
    assert job.outcome() is None

    assert lend(pair, job) < 1
    assert lend(pair, unknown) < 1


def test_threads_that_wait_post_and_cancel_at_once_never_miss_an_end(pairs):
    pair = pairs(8 * MIB, small_bytes=16 * KIB)
    wrong = []

    def work(number):
        rng, part = random.Random(number), number * MIB
        for _ in range(60):
            size = rng.choice((1, BLOCK, 70_000, 900_000))
            start = part + rng.randrange(MIB - size)
            job = pair.read((start, start, size), verify=rng.random() < 0.3)
            if rng.random() < 0.2:
                pair.cancel(job)
            if rng.random() < 0.7:
                lend(pair, job)
            error = job.outcome()
            span = slice(start, start + size)
            if error is None and not np.array_equal(
                pair.into.memory[span], pair.source.memory[span]
            ):
                wrong.append(job)
            if error is not None and not isinstance(error, TransferCancelled):
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(FOREVER_S)
        assert not thread.is_alive()

    assert wrong == []
    assert pair.reader.counters.dialled == 2
