"""The event log: gapless numbers, replay, snapshots that stand for all that happened."""

import random
import time
from threading import Thread

import pytest

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.event_log import CachedBlocks, EventLog
from stafette.kvtransfer.events import AllCleared, BlockRemoved, BlockStored, decode, encode


def log_of(*batches, capacity=10) -> EventLog:
    log = EventLog("w", 7, capacity, clock=lambda: 1.0)
    for events in batches:
        for event in events:
            log.add(event)
        log.flush()
    return log


def stored(*names: str) -> BlockStored:
    """Return blocks of one chain: each name begins with its parent's."""
    parent = names[0][:-1].encode() or None
    return BlockStored(parent, tuple(name.encode() for name in names))


def test_batches_are_numbered_without_gaps_from_one():
    log = log_of([stored("a")], [], [stored("ab"), AllCleared()])

    batches = log.since(0)

    assert [batch.seq for batch in batches] == [1, 2]
    assert [len(batch.events) for batch in batches] == [1, 2]
    assert {(batch.worker_id, batch.epoch) for batch in batches} == {("w", 7)}
    assert log.flush() is None


def test_reader_that_has_all_gets_nothing():
    log = log_of([stored("a")])

    assert log.since(1) == []
    assert EventLog("w", 1).since(0) == []


def test_reader_that_missed_some_gets_those():
    log = log_of([stored("a")], [stored("b")], [stored("c")])

    assert [batch.seq for batch in log.since(1)] == [2, 3]


def test_reader_that_missed_more_than_the_ring_holds_gets_a_snapshot():
    log = log_of([stored("a", "ab")], [stored("b")], [BlockRemoved((b"ab",))], capacity=2)

    (snapshot,) = log.since(0)

    assert snapshot.snapshot
    assert snapshot.seq == 3
    assert snapshot.events == (stored("a"), stored("b"))


def test_reader_from_another_life_gets_a_snapshot():
    (snapshot,) = log_of([stored("a")]).since(99)

    assert snapshot.snapshot
    assert snapshot.seq == 1


def test_snapshot_keeps_chains_together_and_parents_first():
    log = log_of([stored("a", "ab", "abc")], [stored("abd")], [stored("abcd")])

    assert log.snapshot().events == (stored("a", "ab", "abc", "abcd"), stored("abd"))


def test_block_is_cached_until_it_left_its_last_tier():
    cached = CachedBlocks()
    cached.apply(BlockStored(None, (b"a",), "device"))
    cached.apply(BlockStored(None, (b"a",), "host"))

    cached.apply(BlockRemoved((b"a",), "device"))

    assert (cached.on("device"), cached.on("host")) == (set(), {b"a"})
    cached.apply(BlockRemoved((b"a",), None))
    assert len(cached) == 0
    cached.apply(BlockRemoved((b"a",), "disk"))  # of what is not there: nothing


def test_snapshot_stands_for_everything_that_happened():
    rng = random.Random(0)
    log, reader = EventLog("w", 1, capacity=3), CachedBlocks()
    for _ in range(300):
        name = "".join(rng.choice("ab") for _ in range(rng.randint(1, 5)))
        tier = rng.choice(["device", "host"])
        chain = tuple(name[: i + 1].ljust(5).encode() for i in range(len(name)))
        log.add(
            rng.choice([BlockStored(None, chain, tier), BlockRemoved(chain[-1:], tier)])
            if rng.random() < 0.98
            else AllCleared()
        )
        for event in log.flush().events:
            reader.apply(event)

        again = CachedBlocks()
        for event in decode(encode(log.snapshot())).events:
            again.apply(event)

        for tier in ("device", "host"):
            assert again.on(tier) == reader.on(tier)


def test_a_beat_is_an_empty_batch_with_a_number_and_leaves_what_is_pending():
    log = log_of([stored("a")])
    log.add(stored("b"))

    beat = log.beat()

    assert (beat.seq, beat.events) == (2, ())
    assert log.flush().events == (stored("b"),)
    assert [batch.seq for batch in log.since(0)] == [1, 2, 3]


def test_snapshot_does_not_change_with_what_happens_later():
    cached = CachedBlocks()
    cached.apply(stored("a"))
    copy = cached.copy()

    cached.apply(AllCleared())
    cached.apply(stored("b"))

    assert copy.events() == (stored("a"),)


def test_threads_that_add_flush_and_take_snapshots_lose_nothing():
    log, batches = EventLog("w", 1, capacity=100_000), []
    adders = [Thread(target=add_chain, args=(log, name)) for name in "abcd"]
    flusher = Thread(target=flush_until_stored, args=(log, 4 * 500, batches))
    for thread in (*adders, flusher):
        thread.start()
    while flusher.is_alive():
        log.snapshot()
        log.since(0)
    for thread in (*adders, flusher):
        thread.join()

    reader = CachedBlocks()
    for event in (event for batch in batches for event in batch.events):
        reader.apply(event)
    assert len(reader) == 4 * 500
    assert [batch.seq for batch in batches] == list(range(1, log.last_seq + 1))
    assert log.since(0) == batches


def add_chain(log: EventLog, name: str) -> None:
    for i in range(500):
        log.add(BlockStored(None, (f"{name}{i:03}".encode(),)))


def flush_until_stored(log: EventLog, wanted: int, batches: list) -> None:
    deadline = time.monotonic() + 60
    while sum(len(batch.events) for batch in batches) < wanted and time.monotonic() < deadline:
        if batch := log.flush():
            batches.append(batch)


def test_log_without_room_for_one_batch_is_refused():
    with pytest.raises(InvalidValue, match="capacity = 0"):
        EventLog("w", 1, capacity=0)
