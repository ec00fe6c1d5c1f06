"""What a process knows of its peers, after snapshots, changes and outages."""

import random

import msgpack
import pytest

from stafette.kvtransfer.directory.counters import Tally
from stafette.kvtransfer.directory.picture import Picture
from stafette.kvtransfer.directory.records import PeerRecord, encode

PATIENCE_S = 10.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
def picture(tally, clock) -> Picture:
    return Picture(PATIENCE_S, tally, clock)


def values(*names: str, epoch: int = 1) -> dict[bytes, bytes]:
    return {name.encode(): encode(PeerRecord(epoch, b"m")) for name in names}


def test_a_snapshot_stands_for_all_there_is(picture):
    picture.replace(values("a", "b"), after_outage=False)
    picture.replace(values("b", "c"), after_outage=False)

    assert set(picture.records) == {"b", "c"}


def test_changes_come_after_the_snapshot(picture):
    picture.replace(values("a"), after_outage=False)

    picture.apply([*values("b").items(), (b"a", None), (b"never-there", None)])

    assert set(picture.records) == {"b"}


def test_after_an_outage_who_is_missing_is_kept_until_patience_ends(picture, clock, tally):
    picture.replace(values("a", "b"), after_outage=False)

    picture.replace(values("b"), after_outage=True)
    picture.apply([(b"b", None)])  # its lease ended during the outage as well
    clock.now += PATIENCE_S - 1
    picture.apply([])
    assert set(picture.records) == {"a", "b"}
    clock.now += 1
    picture.apply([])

    assert picture.records == {}
    assert tally.read().kept == 2


def test_who_comes_again_after_an_outage_was_never_gone(picture, clock):
    told = []
    picture.replace(values("a"), after_outage=False)
    picture.replace({}, after_outage=True)
    picture.listen(lambda name: told.append(picture.records[name].epoch))

    picture.apply(values("a").items())
    clock.now += PATIENCE_S
    picture.apply([])

    assert set(picture.records) == {"a"}
    assert set(told) == {1}


def test_without_an_outage_who_leaves_is_gone_at_once(picture, clock):
    picture.replace({}, after_outage=True)
    clock.now += PATIENCE_S

    picture.apply([*values("a").items(), (b"a", None)])

    assert picture.records == {}


def test_what_is_no_peer_is_skipped_and_counted(picture, tally):
    malformed = {b"\xff": b"x", b"a/b": b"x", b"x": b"x", b"y": msgpack.packb([9])}

    picture.replace(values("a") | malformed, after_outage=False)

    assert set(picture.records) == {"a"}
    assert tally.read().malformed == 4


def test_a_peer_whose_record_was_overwritten_with_something_else_is_gone(picture, tally):
    picture.replace(values("a"), after_outage=False)

    picture.apply([(b"a", b"what others wrote")])

    assert picture.records == {}
    assert tally.read().malformed == 1


def test_whatever_happens_nobody_who_lives_is_missing_and_nobody_else_stays(picture, clock):
    chance, lives = random.Random(3), {}
    picture.replace({}, after_outage=False)

    for _ in range(3_000):
        clock.now += chance.choice((0.5, PATIENCE_S / 2, PATIENCE_S))
        name = chance.choice("abcdef").encode()
        value = chance.choice((None, *values("x").values(), *values("x", epoch=2).values()))
        lives.pop(name, None)
        if value is not None:
            lives[name] = value
        if chance.random() < 0.3:
            picture.replace(lives, after_outage=chance.random() < 0.5)
        else:
            picture.apply([(name, value)])
        known = {name.encode(): encode(record) for name, record in picture.records.items()}
        assert lives.items() <= known.items()

    clock.now += PATIENCE_S
    picture.apply([])
    assert {name.encode() for name in picture.records} == set(lives)
