"""Whoever reads the net is never kept waiting by whoever handles what was read."""

import threading

import pytest

from stafette.kvtransfer.event_stream.delivery import Delivery
from stafette.kvtransfer.events import EventBatch


class Handler:
    """Notes its calls; is held up before each until the test lets it go on."""

    def __init__(self) -> None:
        self.calls = []
        self.entered, self.may_go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.fails_at = ()

    def on_batch(self, batch):
        self._note((batch.worker_id, batch.seq))

    def on_reset(self, worker_id):
        self._note((worker_id, "reset"))

    def on_lost(self, worker_id):
        self._note((worker_id, "lost"))

    def _note(self, call):
        self.entered.release()
        assert self.may_go_on.acquire(timeout=20)
        self.calls.append(call)
        if call in self.fails_at:
            raise RuntimeError(f"cannot take {call}")

    def go_on(self, count: int) -> None:
        for _ in range(count):
            self.may_go_on.release()


def batch(seq: int, worker_id: str = "w") -> EventBatch:
    return EventBatch(worker_id, 1, seq, 0.0, ())


@pytest.fixture
def handler():
    return Handler()


@pytest.fixture
def told():
    return []


@pytest.fixture
def delivery(handler, told):
    found = Delivery(
        handler,
        2,
        lambda worker_id: told.append(("room", worker_id)),
        lambda worker_id: told.append(("failed", worker_id)),
    )
    yield found
    handler.go_on(100)
    assert found.close(20)


def test_calls_arrive_in_their_order(delivery, handler, eventually):
    delivery.on_batch(batch(1))
    delivery.on_reset("w")
    delivery.on_batch(batch(2))
    delivery.on_lost("w")
    handler.go_on(4)

    eventually(lambda: len(handler.calls) == 4)
    assert handler.calls == [("w", 1), ("w", "reset"), ("w", 2), ("w", "lost")]


def test_each_worker_has_room_for_so_many_batches(delivery, handler, told, eventually):
    assert delivery.has_room("w")
    delivery.on_batch(batch(1))
    delivery.on_batch(batch(2))

    assert not delivery.has_room("w")
    assert delivery.has_room("other")
    handler.go_on(1)
    eventually(lambda: told == [("room", "w")])
    assert delivery.has_room("w")


def test_who_was_not_refused_is_told_of_no_room(delivery, handler, told, eventually):
    for seq in (1, 2, 3):
        delivery.on_batch(batch(seq))
    handler.go_on(3)

    eventually(lambda: len(handler.calls) == 3)
    assert told == []


def test_after_a_failure_batches_are_left_out_until_the_reset(
    delivery, handler, told, eventually, caplog
):
    handler.fails_at = (("w", 1),)
    for call in (batch(1), batch(2), batch(3, "other")):
        delivery.on_batch(call)
    delivery.on_reset("w")
    delivery.on_batch(batch(4))
    handler.go_on(4)

    eventually(lambda: len(handler.calls) == 4)
    assert handler.calls == [("w", 1), ("other", 3), ("w", "reset"), ("w", 4)]
    assert told == [("failed", "w")]
    assert "cannot take" in caplog.text


def test_after_the_end_nothing_is_called_any_more(delivery, handler):
    delivery.on_batch(batch(1))
    delivery.on_batch(batch(2))
    assert handler.entered.acquire(timeout=20)

    assert not delivery.close(0.01)  # the first is not done yet
    handler.go_on(2)

    assert delivery.close(20)
    assert handler.calls == [("w", 1)]
