"""The rules of a store, on a clock that a test turns."""

import pytest

from stafette.kvtransfer.directory.memory import MemoryStore, shared_store
from stafette.kvtransfer.directory.records import PeerRecord, encode
from stafette.kvtransfer.directory.store import Claim
from stafette.kvtransfer.errors import InvalidValue, NameTaken


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock) -> MemoryStore:
    return MemoryStore(clock)


def claim(epoch=1, hold=1, name="p", ttl_s=10.0) -> Claim:
    return Claim(name, hold, epoch, encode(PeerRecord(epoch, b"m%d" % hold)), ttl_s)


def everything(feed) -> list:
    """Return the names of all changes that are there already, a minus before who is gone."""
    found = []
    while changes := feed.next(0):
        found += [name.decode() if value else f"-{name.decode()}" for name, value in changes]
    return found


def test_a_claim_ends_when_its_time_is_over(store, clock):
    store.put(claim(), 1)
    feed = store.follow(5, 1)

    clock.now += 9.9
    assert store.read("p", 1) is not None
    clock.now += 0.1

    assert store.read("p", 1) is None
    assert everything(feed) == ["-p"]
    assert not store.renew(claim(), 1)


def test_a_renewed_claim_lives_for_another_ttl(store, clock):
    store.put(claim(), 1)

    for _ in range(5):
        clock.now += 9
        assert store.renew(claim(), 1)

    clock.now += 10
    assert not store.renew(claim(), 1)


def test_a_newer_life_takes_the_name_at_once_and_the_older_can_do_nothing_to_it(store):
    old, new = claim(epoch=1, hold=1), claim(epoch=2, hold=2)
    store.put(old, 1)

    store.put(new, 1)
    store.remove(old, 1)

    assert not store.renew(old, 1)
    with pytest.raises(NameTaken, match="epoch 2 lives under that name"):
        store.put(old, 1)
    assert store.read("p", 1) == new.value


def test_another_life_of_the_same_epoch_is_refused_and_the_own_one_is_not(store):
    store.put(claim(hold=1), 1)

    store.put(claim(hold=1), 1)
    with pytest.raises(NameTaken):
        store.put(claim(hold=2), 1)


def test_a_name_is_free_once_its_life_has_expired(store, clock):
    store.put(claim(epoch=7, hold=1), 1)

    clock.now += 10
    store.put(claim(epoch=1, hold=2), 1)

    assert store.read("p", 1) == claim(epoch=1, hold=2).value


def test_a_feed_begins_with_a_snapshot_and_misses_nothing_after_it(store, clock):
    store.put(claim(name="a", ttl_s=1), 1)

    feed = store.follow(5, 1)
    store.put(claim(name="b", hold=2), 1)
    clock.now += 1
    store.remove(claim(name="b", hold=2), 1)

    assert list(feed.snapshot) == [b"a"]
    assert everything(feed) == ["b", "-a", "-b"]


def test_a_closed_feed_costs_nothing_more(store):
    feed = store.follow(5, 1)

    feed.close()
    feed.close()
    store.put(claim(), 1)

    assert everything(feed) == []


def test_directories_of_one_cluster_share_a_store_and_others_do_not():
    assert shared_store("a-cluster") is shared_store("a-cluster")
    assert shared_store("a-cluster") is not shared_store("another-cluster")
    with pytest.raises(InvalidValue, match="the memory directory has none"):
        shared_store("a-cluster", object())
