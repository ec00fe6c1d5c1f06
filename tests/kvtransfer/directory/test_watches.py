"""What a watch tells, and to whom it is slow."""

import random
import threading

import pytest

from stafette.kvtransfer.directory.counters import Tally
from stafette.kvtransfer.directory.picture import Picture
from stafette.kvtransfer.directory.records import PeerRecord, encode
from stafette.kvtransfer.directory.watches import Changed, Filter, Joined, Left, Watch

OLD, NEW = PeerRecord(1, b"old", {"role": "prefill"}), PeerRecord(2, b"new", {"role": "decode"})


@pytest.fixture
def picture() -> Picture:
    found = Picture(10.0, Tally())
    found.replace({}, after_outage=False)
    return found


def change(picture: Picture, name: str, record: PeerRecord | None) -> None:
    picture.apply([(name.encode(), record and encode(record))])


def everything(watch: Watch) -> list:
    found = []
    while (event := watch.next(0)) is not None:
        found.append(event)
    return found


def test_a_watch_first_tells_who_is_there(picture):
    change(picture, "a", OLD)

    watch = Watch(picture, Filter())
    change(picture, "b", NEW)

    assert everything(watch) == [Joined("a", OLD), Joined("b", NEW)]


def test_joining_changing_and_leaving_is_told_in_order(picture):
    watch, found = Watch(picture, Filter()), []

    for record in (OLD, NEW, None):
        change(picture, "a", record)
        found += everything(watch)

    assert found == [Joined("a", OLD), Changed("a", NEW, OLD), Left("a", NEW)]


def test_a_slow_consumer_is_told_what_is_new_and_not_how_it_came(picture):
    change(picture, "a", OLD)
    watch = Watch(picture, Filter())
    everything(watch)

    change(picture, "a", None)
    change(picture, "short-lived", NEW)
    change(picture, "a", NEW)
    change(picture, "short-lived", None)

    assert everything(watch) == [Changed("a", NEW, OLD)]


def test_who_left_and_came_back_the_same_was_not_away(picture):
    change(picture, "a", OLD)
    watch = Watch(picture, Filter())
    everything(watch)

    change(picture, "a", None)
    change(picture, "a", OLD)

    assert everything(watch) == []


def test_a_filtered_watch_tells_of_those_that_begin_and_cease_to_match(picture):
    watch = Watch(picture, Filter("w", {"role": "prefill"}))

    change(picture, "x", OLD)
    change(picture, "w", OLD)
    assert everything(watch) == [Joined("w", OLD)]
    change(picture, "w", NEW)

    assert everything(watch) == [Left("w", OLD)]


def test_a_closed_watch_ends_its_iteration(picture):
    change(picture, "a", OLD)
    watch = Watch(picture, Filter())
    found = []

    thread = threading.Thread(target=lambda: found.extend(watch))
    thread.start()
    with picture.changed:
        assert picture.changed.wait_for(lambda: not watch._doubtful, 10)
    watch.close()
    thread.join(10)

    assert found == [Joined("a", OLD)]
    assert not thread.is_alive()
    watch.close()


def test_a_failing_callback_is_counted_and_called_again(picture):
    tally, told, two = Tally(), [], threading.Event()

    def callback(event):
        told.append(event.name)
        if len(told) == 2:
            two.set()
        raise RuntimeError("the consumer's bug")

    watch = Watch(picture, Filter())
    watch.call(callback, tally)
    change(picture, "a", OLD)
    change(picture, "b", OLD)
    assert two.wait(10)
    watch.close()

    assert told == ["a", "b"]
    assert tally.read().callback_errors == 2


def test_a_callback_may_close_its_own_watch(picture):
    watch = Watch(picture, Filter())

    watch.call(lambda event: watch.close(), Tally())
    change(picture, "a", OLD)
    watch._thread.join(10)

    assert not watch._thread.is_alive()


def test_what_consumers_of_any_speed_are_told_adds_up_to_the_picture(picture):
    chance = random.Random(5)
    watches = [Watch(picture, Filter()) for _ in range(3)]
    sums = [{} for _ in watches]

    for _ in range(3_000):
        name = f"p{chance.randrange(20)}"
        change(picture, name, chance.choice((OLD, NEW, None)))
        for watch, known in zip(watches, sums, strict=True):
            if chance.random() < 0.3:
                _add(watch.next(0), known)
        assert all(len(watch._doubtful) <= 20 for watch in watches)
    for watch, known in zip(watches, sums, strict=True):
        for event in everything(watch):
            _add(event, known)

    assert sums == [picture.records] * 3


def _add(event, known: dict) -> None:
    match event:
        case Joined(name, record):
            assert name not in known
            known[name] = record
        case Changed(name, record, previous):
            assert known[name] == previous != record
            known[name] = record
        case Left(name, record):
            assert known.pop(name) == record
