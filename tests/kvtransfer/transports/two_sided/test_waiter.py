"""Whoever waits for a message can be woken, also where gloo cannot be."""

import threading
import time

import pytest

from stafette.kvtransfer.transports.two_sided.waiter import Waiter, first_line

PATIENCE_S = 10.0


class Work:
    """What gloo gives for a receive; a test lets it end."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.entered = threading.Event()
        self.end = threading.Event()

    def wait(self, timeout):
        self.entered.set()
        assert self.end.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error


def soon(seconds: float = PATIENCE_S) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def waiter():
    waiter = Waiter("group")
    yield waiter
    waiter.close()
    waiter._thread.join(PATIENCE_S)
    assert not waiter._thread.is_alive()


def test_works_are_awaited_in_their_order(waiter):
    works = [Work(), Work()]
    first, second = (waiter.expect(work, None) for work in works)

    works[0].end.set()
    first.wait(soon())
    with pytest.raises(TimeoutError):
        second.wait(soon(0.02))
    works[1].end.set()
    second.wait(soon())


def test_what_gloo_raises_is_raised_to_whoever_waits(waiter):
    work = Work(RuntimeError("[/x/pair.cc:1] Connection closed by peer [::1]:9. This is typical"))
    pending = waiter.expect(work, None)

    work.end.set()

    with pytest.raises(ConnectionError, match=r"^Connection closed by peer \[::1\]:9$"):
        pending.wait(soon())


def test_who_waits_is_woken_though_gloo_is_not(waiter):
    work, told = Work(), []
    pending = waiter.expect(work, None)

    def wait():
        with pytest.raises(ConnectionError, match="aborted"):
            pending.wait(soon())
        told.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert work.entered.wait(PATIENCE_S)
    waiter.end("aborted")

    waiting.join(PATIENCE_S)
    assert told == [True]
    assert not waiter.close()  # the thread is still inside
    assert waiter._group is not None
    work.end.set()
    waiter._thread.join(PATIENCE_S)
    assert waiter._group is None  # and gives everything back when it leaves


def test_idle_waiter_ends_with_its_close(waiter):
    assert waiter.close()
    assert not waiter._thread.is_alive()


def test_what_is_expected_after_the_end_is_lost(waiter):
    waiter.end("aborted")

    with pytest.raises(ConnectionError, match="aborted"):
        waiter.expect(Work(), None).wait(soon())


def test_text_that_is_not_of_gloo_is_told_as_it_is():
    assert first_line(RuntimeError("out of memory\nat ...")) == "out of memory"
