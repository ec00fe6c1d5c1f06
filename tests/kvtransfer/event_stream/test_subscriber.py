"""Following many workers: who is added, removed, replaced, and who has another key."""

import threading

import pytest

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.event_log import EventLog
from stafette.kvtransfer.event_stream.follower import Counters
from stafette.kvtransfer.event_stream.link import Link, SubscriberConfig
from stafette.kvtransfer.event_stream.publisher import EventPublisher, PublisherConfig
from stafette.kvtransfer.events import BlockStored

KEY, OTHER_KEY = b"a key of the cluster", b"the key of another one"
IMPATIENT = SubscriberConfig(lost_after_s=0.4, replay_timeout_s=1.0, retry_s=0.05)


@pytest.fixture
def publish():
    """Start a publisher in this process, which has stored one block."""
    publishers = []

    def start(worker_id: str = "w", key: bytes | None = None, epoch: int = 1) -> EventPublisher:
        config = PublisherConfig(heartbeat_s=0.05, key=key)
        publishers.append(EventPublisher(EventLog(worker_id, epoch), config))
        store(publishers[-1], worker_id)
        return publishers[-1]

    yield start
    for publisher in publishers:
        publisher.close()


def store(publisher: EventPublisher, name: str) -> None:
    publisher.log.add(BlockStored(None, (name.encode(),)))
    publisher.publish()


def follow(subscriber, publisher: EventPublisher) -> None:
    subscriber.add_worker(publisher.log.worker_id, publisher.address, publisher.replay_address)


def test_many_workers_are_followed_at_once(publish, subscribe, books):
    publishers = [publish(f"w{number}") for number in range(40)]
    subscriber = subscribe(books)
    for publisher in publishers:
        follow(subscriber, publisher)

    for publisher in publishers:
        store(publisher, "more")

    books.await_that(lambda: all(len(books.of(f"w{i}")) == 2 for i in range(40)))
    assert sorted(subscriber.workers) == sorted(f"w{i}" for i in range(40))


def test_a_worker_that_was_just_added_has_counts(subscribe, books):
    subscriber = subscribe(books)

    subscriber.add_worker("w", "tcp://127.0.0.1:1", "tcp://127.0.0.1:1")

    assert subscriber.counters("w") == Counters()
    assert subscriber.workers == ["w"]


def test_a_worker_that_is_not_followed_is_an_error_that_names_those_that_are(subscribe, books):
    subscriber = subscribe(books)
    subscriber.add_worker("a", "tcp://127.0.0.1:1", "tcp://127.0.0.1:1")

    with pytest.raises(InvalidValue, match="worker_id = 'b': is not followed; those are: a"):
        subscriber.counters("b")


def test_the_last_that_is_heard_of_a_removed_worker_is_its_loss(publish, subscribe, books):
    publisher, subscriber = publish(), subscribe(books)
    follow(subscriber, publisher)
    books.await_that(lambda: len(books.of()) == 1)

    subscriber.remove_worker("w")
    subscriber.remove_worker("nobody")
    books.await_that(lambda: books.calls[-1] == "lost")
    store(publisher, "more")

    assert subscriber.workers == []
    assert len(books.of()) == 0
    assert subscriber.counters().delivered > 0  # all there have been
    with pytest.raises(InvalidValue, match="those are: none"):
        subscriber.counters("w")


def test_a_worker_of_the_same_name_replaces_the_one_before(publish, subscribe, books):
    old, subscriber = publish(), subscribe(books)
    follow(subscriber, old)
    books.await_that(lambda: len(books.of()) == 1)

    new = publish(epoch=2)
    store(new, "of the new one")
    follow(subscriber, new)

    books.await_that(lambda: b"of the new one" in books.of().on("device"))
    assert books.calls.count("lost") == 1


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"address": "nonsense"}, "address"),
        ({"replay_address": "nonsense"}, "address"),
        ({"replay_address": None}, "replay_address"),
        ({"dialect": "klingon"}, "dialect"),
    ],
)
def test_a_worker_that_cannot_be_followed_is_refused(subscribe, books, options, field):
    subscriber = subscribe(books)
    good = {"address": "tcp://127.0.0.1:1", "replay_address": "tcp://127.0.0.1:1"}

    with pytest.raises(InvalidValue) as caught:
        subscriber.add_worker("w", **good | options)

    assert caught.value.field == field
    assert subscriber.workers == []


def test_after_the_end_nobody_is_added_and_nothing_is_called(publish, subscribe, books):
    publisher, subscriber = publish(), subscribe(books)
    follow(subscriber, publisher)
    books.await_that(lambda: len(books.of()) == 1)

    subscriber.close()
    subscriber.close()
    heard = len(books.calls)
    store(publisher, "more")

    assert len(books.calls) == heard
    with pytest.raises(InvalidValue, match="comes too late"):
        follow(subscriber, publisher)


def test_a_handler_may_close_the_subscriber(publish, subscribe, books):
    closed = threading.Event()

    class Closing:
        on_reset, on_lost = books.on_reset, books.on_lost

        def on_batch(self, batch):
            subscriber.close()
            closed.set()

    subscriber = subscribe(Closing())
    follow(subscriber, publish())

    assert closed.wait(20)


def test_a_handler_may_remove_the_worker(publish, subscribe, books):
    class Removing:
        on_reset, on_lost = books.on_reset, books.on_lost

        def on_batch(self, batch):
            subscriber.remove_worker(batch.worker_id)

    subscriber = subscribe(Removing())
    follow(subscriber, publish())

    books.await_that(lambda: books.calls == ["lost"])


def test_our_own_failure_is_no_silence(publish, subscribe, books, monkeypatch, caplog):
    """Nobody goes on to believe what is followed no more."""
    publisher, subscriber = publish(), subscribe(books)
    follow(subscriber, publisher)
    books.await_that(lambda: len(books.of()) == 1)

    monkeypatch.setattr(Link, "pump", lambda link: 1 / 0)
    store(publisher, "more")

    books.await_that(lambda: books.calls[-1] == "lost")
    assert "followed no more" in caplog.text
    with pytest.raises(InvalidValue, match="comes too late"):
        follow(subscriber, publisher)


def test_with_the_same_key_events_arrive(publish, subscribe, books):
    follow(subscribe(books, SubscriberConfig(key=KEY)), publish(key=KEY))

    books.await_that(lambda: len(books.of()) == 1)


@pytest.mark.parametrize(
    ("publishers_key", "followers_key"), [(KEY, OTHER_KEY), (KEY, None), (None, KEY)]
)
def test_with_another_key_or_none_nothing_is_heard_or_answered(
    publish, subscribe, books, publishers_key, followers_key
):
    publisher = publish(key=publishers_key)
    config = SubscriberConfig(
        lost_after_s=0.4, replay_timeout_s=0.2, retry_s=0.05, key=followers_key
    )
    subscriber = subscribe(books, config)

    follow(subscriber, publisher)

    books.await_that(lambda: books.calls == ["lost"])
    counters = subscriber.counters("w")
    assert (counters.received, counters.malformed) == (0, 0)
    assert (publisher.counters.replays, publisher.counters.snapshots) == (0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lost_after_s": 0},
        {"replay_timeout_s": 0},
        {"retry_s": 0},
        {"max_replays": 0},
        {"queue_batches": 0},
        {"key": b"short"},
    ],
)
def test_a_wrong_value_is_named(wrong):
    with pytest.raises(InvalidValue) as caught:
        SubscriberConfig(**wrong)

    assert caught.value.field == next(iter(wrong))
