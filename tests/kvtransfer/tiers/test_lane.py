"""Lanes: bounded, urgent first, and none of them is stopped by what goes wrong in its work."""

import threading

import pytest

from stafette.kvtransfer.tiers.lane import Lane

TIMEOUT_S = 10.0


@pytest.fixture
def lane():
    made = Lane("test", 1, (4, 4))
    yield made
    assert made.close(TIMEOUT_S)


class Blocker:
    """Work that holds the lane's thread until it is let go."""

    def __init__(self, lane):
        self.began, self.release = threading.Event(), threading.Event()
        assert lane.submit(self, 0, urgent=True)
        assert self.began.wait(TIMEOUT_S)

    def __call__(self):
        self.began.set()
        assert self.release.wait(TIMEOUT_S)


def test_urgent_work_overtakes_and_each_kind_keeps_its_order(lane):
    done, blocker = [], Blocker(lane)
    for name, urgent in (("a", False), ("B", True), ("c", False), ("D", True)):
        lane.submit(lambda name=name: done.append(name), 1, urgent)

    blocker.release.set()

    assert lane.drain(TIMEOUT_S)
    assert done == ["B", "D", "a", "c"]


def test_work_beyond_the_limit_is_refused_for_its_kind_alone(lane):
    blocker = Blocker(lane)

    assert lane.submit(lambda: None, 4, urgent=True)
    assert not lane.submit(lambda: None, 1, urgent=True)
    assert lane.submit(lambda: None, 3, urgent=False)
    assert lane.num_waiting == (4, 3)
    blocker.release.set()


def test_work_larger_than_the_limit_is_taken_when_nothing_waits(lane):
    blocker = Blocker(lane)

    assert lane.submit(lambda: None, 9, urgent=True)
    assert not lane.submit(lambda: None, 1, urgent=True)
    blocker.release.set()


def test_work_that_raises_is_logged_and_the_next_is_done(lane, caplog):
    done = threading.Event()
    lane.submit(lambda: 1 / 0, 1, urgent=True)

    lane.submit(done.set, 1, urgent=True)

    assert done.wait(TIMEOUT_S)
    assert "work of test-0 failed" in caplog.text


def test_closed_lane_does_what_waits_and_takes_no_more():
    lane, done = Lane("test", 2, (4, 4)), []
    blocker = Blocker(lane)
    lane.submit(lambda: done.append(1), 1, urgent=False)
    blocker.release.set()

    assert lane.close(TIMEOUT_S)

    assert done == [1]
    assert not lane.submit(lambda: None, 1, urgent=True)


def test_closing_tells_when_a_thread_is_still_at_it():
    lane = Lane("test", 1, (4, 4))
    blocker = Blocker(lane)

    assert not lane.close(0.01)
    assert not lane.drain(0.01)
    blocker.release.set()
    assert lane.close(TIMEOUT_S)
