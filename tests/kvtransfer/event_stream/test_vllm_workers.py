"""Stock vLLM workers are followed by what they publish, and by the buffer that they replay."""

import pytest

from stafette.kvtransfer.event_stream import link
from stafette.kvtransfer.event_stream.subscriber import SubscriberConfig
from stafette.kvtransfer.events import BlockStored

IMPATIENT = SubscriberConfig(lost_after_s=0.2, replay_timeout_s=1.0, retry_s=0.05)


@pytest.fixture
def vllm_books(make_books):
    return make_books(exact=False)


def numbers(books) -> set[int]:
    """Return the numbers of the blocks that the books show."""
    return {int.from_bytes(each, "little") - 1000 for each in books.of().on("device")}


def follow(subscriber, worker, with_replay: bool = True) -> None:
    replay_address = worker.replay_address if with_replay else None
    subscriber.add_worker("w", worker.address, replay_address, "vllm")


def test_who_is_there_from_the_beginning_hears_all(start_vllm, subscribe, vllm_books):
    worker, subscriber = start_vllm(), subscribe(vllm_books, IMPATIENT)
    follow(subscriber, worker)

    worker.ask("store", 0, 40)
    worker.ask("remove", 7)

    vllm_books.await_that(lambda: numbers(vllm_books) == set(range(40)) - {7})
    assert "reset" not in vllm_books.calls


def test_who_comes_later_gets_the_buffer_though_nothing_happens_any_more(
    start_vllm, subscribe, vllm_books
):
    worker = start_vllm()
    worker.ask("store", 0, 50)
    worker.ask("remove", 3)

    follow(subscribe(vllm_books), worker)

    vllm_books.await_that(lambda: numbers(vllm_books) == set(range(50)) - {3})


def test_a_buffer_larger_than_zeromqs_queue_arrives_in_the_end(start_vllm, subscribe, vllm_books):
    """Its socket drops what it has no room for, the end of the answer too."""
    worker = start_vllm()
    worker.ask("store", 0, 6_000)
    subscriber = subscribe(vllm_books, SubscriberConfig(queue_batches=100))

    follow(subscriber, worker)

    vllm_books.await_that(lambda: len(vllm_books.of()) == 6_000)
    assert "reset" not in vllm_books.calls


def test_what_was_lost_on_the_way_is_replayed(start_vllm, subscribe, vllm_books):
    worker, subscriber = start_vllm(), subscribe(vllm_books, IMPATIENT)
    follow(subscriber, worker)
    worker.ask("store", 0, 3)
    vllm_books.await_that(lambda: numbers(vllm_books) == set(range(3)))

    worker.ask("store", 3, 5, False)
    worker.ask("store", 8, 1)

    vllm_books.await_that(lambda: numbers(vllm_books) == set(range(9)))
    assert "reset" not in vllm_books.calls


def test_what_the_buffer_no_longer_holds_is_given_up_and_the_rest_is_exact(
    start_vllm, subscribe, vllm_books
):
    worker = start_vllm(buffer_steps=4)
    follow(subscribe(vllm_books, IMPATIENT), worker)
    worker.ask("store", 0, 3)
    vllm_books.await_that(lambda: numbers(vllm_books) == set(range(3)))

    worker.ask("store", 3, 20, False)
    worker.ask("store", 23, 1)

    vllm_books.await_that(lambda: numbers(vllm_books) == {20, 21, 22, 23})
    assert vllm_books.calls.count("reset") == 1


@pytest.mark.parametrize("num_batches", [2, 30])  # fewer and more than were known before
def test_a_restarted_worker_keeps_nothing_of_its_old_life(
    start_vllm, subscribe, vllm_books, num_batches
):
    old = start_vllm()
    old.ask("store", 0, 10)
    follow(subscribe(vllm_books, IMPATIENT), old)
    vllm_books.await_that(lambda: numbers(vllm_books) == set(range(10)))

    old.kill()
    new = start_vllm(1, old.address, old.replay_address)
    new.ask("store", 100, num_batches)  # nobody may have heard it, and it says no more

    vllm_books.await_that(lambda: numbers(vllm_books) == set(range(100, 100 + num_batches)))


def test_a_restart_that_nobody_noticed_shows_when_the_worker_is_asked(
    start_vllm, subscribe, vllm_books, eventually
):
    """Numbers go on behind those of the old life, as if some had been lost."""
    old = start_vllm()
    old.ask("store", 0, 10)
    patient = SubscriberConfig(lost_after_s=60, replay_timeout_s=30, retry_s=0.05)
    subscriber = subscribe(vllm_books, patient)
    follow(subscriber, old)
    vllm_books.await_that(lambda: numbers(vllm_books) == set(range(10)))

    old.kill()
    new = start_vllm(1, old.address, old.replay_address)
    new.ask("store", 100, 20)

    def heard() -> bool:
        new.ask("clear")
        new.ask("store", 300, 1)
        return subscriber.counters("w").gaps > 0

    eventually(heard)
    new.ask("store", 400, 1)
    vllm_books.await_that(lambda: numbers(vllm_books) == {300, 400})
    assert subscriber.counters("w").lost == 0


def test_without_a_replay_address_a_gap_is_given_up_at_once(start_vllm, subscribe, vllm_books):
    worker = start_vllm()
    follow(subscribe(vllm_books), worker, with_replay=False)
    while not vllm_books.calls:
        worker.ask("store", 0, 1)

    worker.ask("store", 5, 3, False)
    worker.ask("store", 8, 1)

    vllm_books.await_that(lambda: numbers(vllm_books) == {8})
    assert vllm_books.calls.count("reset") == 1


def test_a_silent_worker_is_asked_and_not_lost_while_it_answers(
    start_vllm, subscribe, vllm_books, eventually
):
    worker, subscriber = start_vllm(), subscribe(vllm_books, IMPATIENT)
    follow(subscriber, worker)
    worker.ask("store", 0, 1)
    vllm_books.await_that(lambda: numbers(vllm_books) == {0})

    asked = subscriber.counters("w").replays
    eventually(lambda: subscriber.counters("w").replays > asked + 2)

    assert (numbers(vllm_books), subscriber.counters("w").lost) == ({0}, 0)


def test_a_last_batch_that_was_lost_is_found_by_asking(start_vllm, subscribe, vllm_books):
    worker, subscriber = start_vllm(), subscribe(vllm_books, IMPATIENT)
    follow(subscriber, worker)
    worker.ask("store", 0, 1)
    vllm_books.await_that(lambda: numbers(vllm_books) == {0})

    worker.ask("store", 1, 1, False)

    vllm_books.await_that(lambda: numbers(vllm_books) == {0, 1})


def test_a_killed_worker_is_lost_once_and_found_again(
    start_vllm, subscribe, vllm_books, monkeypatch
):
    monkeypatch.setattr(link, "_LOST_PAUSE", 1)
    old = start_vllm()
    old.ask("store", 0, 3)
    subscriber = subscribe(vllm_books, IMPATIENT)
    follow(subscriber, old)
    vllm_books.await_that(lambda: numbers(vllm_books) == set(range(3)))

    old.kill()
    vllm_books.await_that(lambda: "lost" in vllm_books.calls)
    assert numbers(vllm_books) == set()
    new = start_vllm(1, old.address, old.replay_address)
    new.ask("store", 50, 2)  # before anybody hears it

    vllm_books.await_that(lambda: numbers(vllm_books) == {50, 51})
    assert subscriber.counters("w").lost == 1


def test_a_cleared_cache_is_empty(start_vllm, subscribe, vllm_books):
    worker = start_vllm()
    worker.ask("store", 0, 5)
    follow(subscribe(vllm_books), worker)
    vllm_books.await_that(lambda: len(numbers(vllm_books)) == 5)

    worker.ask("clear")

    vllm_books.await_that(lambda: numbers(vllm_books) == set())


def test_only_the_topic_that_is_wanted_is_heard(start_vllm, subscribe, vllm_books):
    worker = start_vllm(topic="kv@model-b")
    subscriber = subscribe(vllm_books, SubscriberConfig(topic="kv@model-a"))
    follow(subscriber, worker)
    right = subscribe(vllm_books, SubscriberConfig(topic="kv@model-b"))
    right.add_worker("right", worker.address, worker.replay_address, "vllm")

    worker.ask("store", 0, 3)

    vllm_books.await_that(lambda: len(vllm_books.of("right")) == 3)
    assert subscriber.counters("w").received <= 3  # from the buffer, which knows no topics


def test_events_keep_what_a_router_needs_to_compute_hashes_of_ours(
    start_vllm, subscribe, vllm_books
):
    worker, events = start_vllm(), []
    on_batch = vllm_books.on_batch

    def keep(batch):
        events.extend(batch.events)
        on_batch(batch)

    vllm_books.on_batch = keep
    follow(subscribe(vllm_books), worker)

    worker.ask("store", 0, 2)

    vllm_books.await_that(lambda: len(events) == 2)
    first, second = events
    assert first == BlockStored(None, first.hashes, "device", (0,), 1)
    assert second == BlockStored(first.hashes[0], second.hashes, "device", (1,), 1)
