"""Publisher and subscriber in different processes, which are stopped, killed and flooded."""

import threading

import pytest

from stafette.kvtransfer.event_stream.link import Phase
from stafette.kvtransfer.event_stream.subscriber import EventSubscriber, SubscriberConfig

IMPATIENT = SubscriberConfig(lost_after_s=0.4, replay_timeout_s=1.0, retry_s=0.05)


def follow(subscriber: EventSubscriber, worker) -> None:
    subscriber.add_worker("w", worker.address, worker.replay_address)


def await_all(books, worker) -> set[bytes]:
    """Wait until the books show exactly what the worker has cached."""
    expected = worker.cached()
    books.await_that(lambda: books.of().on("device") == expected)
    return expected


def test_who_joins_late_knows_exactly_what_is_cached(start_worker, subscribe, books):
    worker = start_worker(capacity=10)
    worker.ask("churn", 200)

    follow(subscribe(books), worker)

    assert len(await_all(books, worker)) > 300
    assert books.calls[0] == "snapshot"


def test_who_joins_while_batches_pour_out_misses_none(start_worker, subscribe, books):
    worker = start_worker()
    subscriber = subscribe(books)

    follow(subscriber, worker)
    worker.ask("churn", 2_000)  # at once: the subscription is on its way meanwhile

    await_all(books, worker)
    assert "reset" not in books.calls


def test_a_worker_that_is_not_there_yet_is_followed_when_it_comes(start_worker, subscribe, books):
    first = start_worker()
    first.kill()  # its addresses are free
    subscriber = subscribe(books, IMPATIENT)

    follow(subscriber, first)
    books.await_that(lambda: "lost" in books.calls)
    worker = start_worker(1, first.address, first.replay_address)
    worker.ask("store", "aa")

    assert await_all(books, worker) == {b"\xaa"}


def test_a_worker_that_was_killed_and_restarted_keeps_nothing_of_its_old_life(
    start_worker, subscribe, books
):
    old = start_worker(1)
    old.ask("store", "aa", "bb")
    subscriber = subscribe(books)
    follow(subscriber, old)
    await_all(books, old)

    old.kill()
    new = start_worker(2, old.address, old.replay_address)
    new.ask("churn", 20)

    assert b"\xaa" not in await_all(books, new)
    assert books.calls.count("reset") == subscriber.counters().resets == 1


def test_a_stopped_worker_is_lost_and_comes_back_exactly(start_worker, subscribe, books):
    worker = start_worker()
    worker.ask("churn", 20)
    subscriber = subscribe(books, IMPATIENT)
    follow(subscriber, worker)
    await_all(books, worker)

    worker.stop()
    books.await_that(lambda: books.calls[-1] == "lost")
    assert len(books.of()) == 0
    worker.go_on()
    worker.ask("churn", 20)

    await_all(books, worker)
    assert subscriber.counters("w").lost == 1


def test_a_killed_worker_is_lost_once(start_worker, subscribe, books, eventually):
    worker, other = start_worker(), start_worker()
    worker.ask("store", "aa")
    subscriber = subscribe(books, IMPATIENT)
    follow(subscriber, worker)
    await_all(books, worker)

    worker.kill()
    books.await_that(lambda: books.calls[-1] == "lost")
    subscriber.add_worker("other", other.address, other.replay_address)
    eventually(lambda: subscriber.counters("other").malformed > 20)  # its name is "w": a second

    assert books.calls.count("lost") == 2  # that other one is never heard of either


class Blocked:
    """A handler that is held up in its first batch."""

    def __init__(self, books) -> None:
        self.may_go_on = threading.Event()
        self.entered = threading.Event()
        self.on_reset, self.on_lost = books.on_reset, books.on_lost
        self._books = books

    def on_batch(self, batch):
        self.entered.set()
        assert self.may_go_on.wait(60)
        self._books.on_batch(batch)


@pytest.fixture
def held_up(subscribe, books, start_worker):
    """Follow a worker, and publish far more than the queue holds while the handler is held up."""
    handlers = []

    def start(num_batches: int, **options):
        handler = Blocked(books)
        handlers.append(handler)
        config = SubscriberConfig(queue_batches=5, replay_timeout_s=1.0, retry_s=0.05)
        subscriber = subscribe(handler, config)
        worker = start_worker(**options)
        follow(subscriber, worker)
        assert handler.entered.wait(20)
        worker.ask("churn", num_batches)
        return subscriber, worker, handler.may_go_on

    yield start
    for handler in handlers:
        handler.may_go_on.set()


def test_what_a_slow_handler_has_no_room_for_is_replayed(held_up, books):
    subscriber, worker, may_go_on = held_up(600)

    may_go_on.set()

    await_all(books, worker)
    counters = subscriber.counters()
    assert counters.gaps > 0
    assert (counters.resets, counters.snapshots) == (0, 1)
    # All of it, one way or the other: the books have checked that none is missing in between.
    assert counters.delivered - counters.snapshots >= 600


def test_what_the_ring_no_longer_holds_comes_as_a_snapshot(held_up, books):
    subscriber, worker, may_go_on = held_up(600, capacity=20)

    may_go_on.set()

    await_all(books, worker)
    counters = subscriber.counters()
    assert counters.snapshots > 1
    assert counters.delivered < 600


def test_what_is_published_is_read_also_while_the_handler_is_held_up(held_up, books, eventually):
    """Nothing waits in a ZeroMQ socket, where it would be a danger to the process."""
    subscriber, worker, may_go_on = held_up(600)

    eventually(lambda: subscriber._links["w"].phase is Phase.REPLAYING)
    worker.ask("churn", 100)
    eventually(lambda: len(subscriber._links["w"]._held) == 5)  # all that may be
    may_go_on.set()

    await_all(books, worker)


def test_a_worker_that_is_killed_and_restarted_while_the_handler_is_held_up_is_followed(
    held_up, books, start_worker
):
    """Full queues and a new connection: where libzmq would end the process."""
    _, old, may_go_on = held_up(600)

    old.kill()
    new = start_worker(2, old.address, old.replay_address)
    new.ask("churn", 200)
    may_go_on.set()

    await_all(books, new)
    assert "reset" in books.calls


class Failing:
    """A handler that fails at the third batch, whatever that is."""

    def __init__(self, books) -> None:
        self.num_batches = 0
        self.on_reset, self.on_lost = books.on_reset, books.on_lost
        self._books = books

    def on_batch(self, batch):
        self.num_batches += 1
        if self.num_batches == 3:
            raise RuntimeError("cannot")
        self._books.on_batch(batch)


def test_a_handler_that_fails_forgets_and_gets_a_snapshot(start_worker, subscribe, books, caplog):
    worker = start_worker()
    subscriber = subscribe(Failing(books), IMPATIENT)
    follow(subscriber, worker)
    worker.ask("churn", 50)

    books.await_that(lambda: "reset" in books.calls)

    await_all(books, worker)
    assert books.calls.count("reset") == subscriber.counters("w").handler_errors == 1
    assert "handler of w's events failed" in caplog.text
