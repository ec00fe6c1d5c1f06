"""What a process knows of its peers, after snapshots, changes and outages."""

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
