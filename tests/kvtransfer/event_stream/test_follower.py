"""One worker's batches: in order, without gaps, whatever is dropped, repeated or overtaken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.kvtransfer.event_log import CachedBlocks, EventLog
from stafette.kvtransfer.event_stream.follower import Counters, Follower
from stafette.kvtransfer.events import AllCleared, BlockRemoved, BlockStored, EventBatch


def batch(seq: int, epoch: int = 1, snapshot: bool = False) -> EventBatch:
    return EventBatch("w", epoch, seq, 0.0, (BlockStored(None, (bytes([seq]),)),), snapshot)


@pytest.fixture
def follow(make_books):
    def start(*batches: EventBatch, **promises: bool):
        books = make_books(exact=promises.get("snapshots", True))
        follower = Follower("w", books, Counters(), **promises)
        for each in batches:
            follower.take(each)
        return follower, books

    return start


def replay(follower: Follower, *batches: EventBatch) -> None:
    follower.begin_replay()
    for each in batches:
        follower.take(each)
    follower.end_replay()


def test_batches_in_order_are_delivered(follow):
    follower, books = follow(batch(1), batch(2), batch(3))

    assert books.calls == [1, 2, 3]
    assert not follower.behind


def test_a_batch_that_is_known_is_dropped(follow):
    follower, books = follow(batch(1), batch(2), batch(2), batch(1))

    assert books.calls == [1, 2]
    assert follower.counters.duplicates == 2


def test_a_gap_asks_for_a_replay_from_the_first_that_is_missing(follow):
    follower, books = follow(batch(1), batch(4))

    assert (follower.behind, follower.start) == (True, 2)
    replay(follower, batch(2), batch(3), batch(4))
    assert books.calls == [1, 2, 3, 4]
    assert (follower.behind, follower.counters.gaps) == (False, 1)


def test_who_joins_late_asks_for_everything(follow):
    follower, books = follow(batch(7))

    assert (follower.behind, follower.start) == (True, 0)
    replay(follower, batch(8, snapshot=True))
    assert books.calls == ["snapshot"]
    assert not follower.behind


def test_a_snapshot_older_than_what_is_known_is_dropped(follow):
    _, books = follow(batch(1), batch(2), batch(1, snapshot=True))

    assert books.calls == [1, 2]


def test_a_new_life_forgets_the_old_one_at_once(follow):
    follower, books = follow(batch(1), batch(2), batch(5, epoch=2))

    assert books.calls == [1, 2, "reset"]
    assert (follower.behind, follower.start) == (True, 0)


def test_a_new_life_seen_from_its_first_batch_needs_no_replay(follow):
    follower, books = follow(batch(1), batch(2), batch(1, epoch=2))

    assert books.calls == [1, 2, "reset", 1]
    assert not follower.behind


def test_what_an_old_life_lacked_is_not_missed_in_the_new_one(follow):
    follower, books = follow(batch(3, epoch=1), batch(2, epoch=2))

    replay(follower, batch(2, epoch=2, snapshot=True))

    assert books.calls == ["snapshot"]
    assert not follower.behind


def test_a_replay_that_does_not_fill_the_gap_forgets_and_asks_for_everything_next_time(follow):
    follower, books = follow(batch(1), batch(4))

    replay(follower)

    assert books.calls == [1, "reset"]
    assert (follower.behind, follower.counters.failed_replays) == (False, 1)
    follower.take(batch(5))
    assert (follower.behind, follower.start) == (True, 0)


def test_a_lost_worker_comes_back_by_a_snapshot(follow):
    follower, books = follow(batch(1))

    follower.lose()
    follower.take(batch(2))

    assert books.calls == [1, "lost"]
    assert (follower.behind, follower.start) == (True, 0)


def test_a_handler_that_failed_forgets_and_gets_a_snapshot(follow):
    follower, books = follow(batch(1), batch(2))

    follower.fail()
    follower.take(batch(3))

    assert books.calls == [1, 2, "reset"]
    assert follower.counters.handler_errors == 1
    assert (follower.behind, follower.start) == (True, 0)


def test_a_batch_for_which_there_is_no_room_is_missing(follow):
    follower, books = follow(batch(1))

    follower.take(batch(2), room=False)

    assert books.calls == [1]
    assert (follower.behind, follower.start, follower.counters.gaps) == (True, 2, 1)
    replay(follower, batch(2))
    assert books.calls == [1, 2]
    assert not follower.behind


def test_without_replays_what_there_was_no_room_for_is_given_up_with_the_next_one(follow):
    follower, books = follow(batch(4), snapshots=False, replays=False)

    follower.take(batch(5), room=False)
    follower.take(batch(6))

    assert books.calls == [4, "reset", 6]
    assert not follower.behind


def test_without_snapshots_what_the_buffer_lacks_is_given_up(follow):
    follower, books = follow(batch(1), batch(9), snapshots=False)

    replay(follower, batch(7), batch(8), batch(9))
    follower.take(batch(10))

    assert books.calls == [1, "reset", 7, 8, 9, 10]
    assert not follower.behind


def test_without_snapshots_who_joins_late_begins_with_what_the_buffer_has(follow):
    follower, books = follow(snapshots=False)

    replay(follower, batch(7), batch(8))

    assert books.calls == [7, 8]


def test_without_snapshots_a_replay_that_brings_nothing_is_given_up(follow):
    follower, books = follow(batch(1), batch(9), snapshots=False)

    replay(follower)
    follower.take(batch(10))
    follower.take(batch(12))

    assert books.calls == [1, "reset", 10]
    assert (follower.behind, follower.start) == (True, 11)


def test_without_replays_every_gap_is_given_up_at_once(follow):
    follower, books = follow(
        batch(4), batch(5), batch(9), batch(10), snapshots=False, replays=False
    )

    assert books.calls == [4, 5, "reset", 9, 10]
    assert not follower.behind


moments = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.integers(0, 9), st.sampled_from(["device", "host"])),
        st.tuples(st.just("remove"), st.integers(0, 9), st.sampled_from(["device", "host", None])),
        st.sampled_from([("clear",), ("beat",), ("restart",), ("lose",)]),
        st.tuples(st.just("deliver"), st.integers(0, 3)),  # not always the first: reorders
        st.tuples(st.just("drop"), st.integers(0, 3)),
        st.tuples(st.just("repeat"), st.integers(0, 3)),
        st.tuples(st.just("replay"), st.sets(st.integers(0, 3))),  # what gets lost of it
    ),
    max_size=40,
)


class World:
    """A worker, a net that loses, repeats and reorders, and who follows the worker over it."""

    def __init__(self, books, capacity: int, snapshots: bool = True) -> None:
        self.books = books
        self.follower = Follower("w", books, Counters(), snapshots)
        self.log = EventLog("w", 1, capacity, clock=lambda: 0.0)
        self.cached = CachedBlocks()
        self.net = []
        self._capacity, self._snapshots = capacity, snapshots

    def store(self, block: int, tier: str) -> None:
        self._publish(BlockStored(None, (bytes([block]),), tier))

    def remove(self, block: int, tier: str | None) -> None:
        self._publish(BlockRemoved((bytes([block]),), tier))

    def clear(self) -> None:
        self._publish(AllCleared())

    def beat(self) -> None:
        self.net.append(self.log.beat())

    def restart(self) -> None:
        if self._snapshots:
            self.log = EventLog("w", self.log.epoch + 1, self._capacity, clock=lambda: 0.0)
            self.cached = CachedBlocks()

    def lose(self) -> None:
        if self._snapshots:
            self.follower.lose()

    def deliver(self, place: int) -> None:
        if place < len(self.net):
            self.follower.take(self.net.pop(place))

    def drop(self, place: int) -> None:
        del self.net[place : place + 1]

    def repeat(self, place: int) -> None:
        self.net += self.net[place : place + 1]

    def replay(self, lost: set[int] = frozenset()) -> None:
        start = self.follower.start
        wanted = start or not self._snapshots
        answer = self.log.since(max(0, start - 1)) if wanted else [self.log.snapshot()]
        replay(self.follower, *(each for i, each in enumerate(answer) if i not in lost))

    def settle(self) -> None:
        """Let one message and one answer arrive."""
        self.net.clear()
        self.follower.take(self.log.beat())
        if self.follower.behind:
            self.replay()

    def _publish(self, event) -> None:
        self.log.add(event)
        self.cached.apply(event)
        self.net.append(self.log.flush())


@given(moments)
def test_one_message_and_one_answer_make_everything_good(make_books, happened):
    world = World(make_books(), capacity=4)
    for name, *arguments in happened:
        getattr(world, name)(*arguments)

    world.settle()

    assert not world.follower.behind
    for tier in ("device", "host"):
        assert world.books.of().on(tier) == world.cached.on(tier)


@given(moments)
def test_without_snapshots_a_buffer_that_holds_everything_makes_everything_good(
    make_books, happened
):
    world = World(make_books(exact=False), capacity=100, snapshots=False)
    for name, *arguments in happened:
        if name != "replay":  # a lossy replay is given up, and then the beginning is lost
            getattr(world, name)(*arguments)

    world.settle()

    for tier in ("device", "host"):
        assert world.books.of().on(tier) == world.cached.on(tier)
