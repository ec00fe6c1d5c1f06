"""What every backend of the directory promises."""

import asyncio
import math
import threading
import time

import pytest

from stafette.kvtransfer.directory.records import MAX_METADATA_BYTES, PeerRecord, encode
from stafette.kvtransfer.directory.store import Claim
from stafette.kvtransfer.errors import (
    DirectoryUnavailable,
    InvalidValue,
    NameTaken,
    PeerNotFound,
)

PREFILL, DECODE = {"role": "prefill"}, {"role": "decode"}


def record(epoch: int = 1, metadata: bytes = b"m", **labels: str) -> PeerRecord:
    return PeerRecord(epoch, metadata, labels)


def publish_without_heartbeats(directory, name: str, ttl_s: float, epoch: int = 1) -> None:
    """Do what a process does that dies right after it was published."""
    claim = Claim(name, 77 + epoch, epoch, encode(record(epoch)), ttl_s)
    directory._store.put(claim, 5)


def test_who_is_published_is_found_by_others(open_one):
    here, there = open_one(), open_one()

    here.publish("p", record(7, b"metadata", role="prefill"))

    assert there.find("p") == record(7, b"metadata", role="prefill")
    assert there.get("p") == there.get("p", fresh=True) == record(7, b"metadata", role="prefill")
    assert here.counters().published == 1


def test_find_waits_for_who_comes_later(open_one):
    here, there = open_one(), open_one()
    assert there.list() == {}

    timer = threading.Timer(0.05, here.publish, ("p", record()))
    timer.start()

    assert there.find("p", 10) == record()
    timer.join()


def test_find_waits_for_the_epoch_that_is_wanted(open_one):
    here, there = open_one(), open_one()
    here.publish("p", record(1))
    there.find("p")

    timer = threading.Timer(0.05, here.publish, ("p", record(2)))
    timer.start()

    assert there.find("p", 10, min_epoch=2).epoch == 2
    timer.join()


def test_who_was_never_published_is_not_found(open_one):
    directory = open_one()

    assert directory.get("p") is None
    assert directory.get("p", fresh=True) is None
    with pytest.raises(PeerNotFound, match="no peer p was published within 0.05 s"):
        directory.find("p", 0.05)


def test_peers_are_listed_by_name_prefix_and_labels(open_one):
    here, there = open_one(), open_one()
    here.publish("decode-1", record(role="decode"))
    here.publish("prefill-2", record(role="prefill", zone="a"))
    here.publish("prefill-1", record(role="prefill", zone="b"))
    there.find("prefill-1")

    assert list(there.list()) == ["decode-1", "prefill-1", "prefill-2"]
    assert list(there.list("prefill-")) == ["prefill-1", "prefill-2"]
    assert list(there.list(labels=PREFILL | {"zone": "a"})) == ["prefill-2"]


def test_an_update_is_told_to_watchers(open_one, make_picture):
    here, picture = open_one(), make_picture()
    open_one().watch(picture)
    registration = here.publish("p", record(role="both"))
    picture.await_that(lambda: "p" in picture.peers)

    registration.update(labels=PREFILL)
    picture.await_that(lambda: picture.peers["p"] == record(role="prefill"))
    registration.update(metadata=b"other")
    picture.await_that(lambda: picture.peers["p"] == record(1, b"other", role="prefill"))

    assert picture.kinds() == ["Joined", "Changed", "Changed"]
    assert registration.record == picture.peers["p"]


def test_who_withdraws_is_gone_and_may_come_again(open_one, make_picture):
    here, picture = open_one(), make_picture()
    open_one().watch(picture)
    registration = here.publish("p", record())
    picture.await_that(lambda: "p" in picture.peers)

    assert registration.withdraw()
    picture.await_that(lambda: picture.peers == {})
    assert registration.withdraw()

    assert (registration.state, registration.ended.result(5)) == ("withdrawn", None)
    assert here.get("p", fresh=True) is None
    with pytest.raises(InvalidValue, match="is withdrawn"):
        registration.update(b"late")
    here.publish("p", record())
    picture.await_that(lambda: "p" in picture.peers)


def test_heartbeats_keep_a_peer_beyond_its_ttl(open_one, make_picture, eventually):
    here, picture = open_one(), make_picture()
    open_one().watch(picture)

    registration = here.publish("p", record(), ttl_s=1.0)
    eventually(lambda: here.counters().beats >= 5)  # more than a ttl

    assert picture.kinds() == ["Joined"]
    assert registration.state == "held"
    assert here.counters().republished == 0


def test_who_sends_no_heartbeats_is_gone_after_its_ttl(open_one, make_picture):
    here, picture = open_one(), make_picture()
    open_one().watch(picture)

    publish_without_heartbeats(here, "p", ttl_s=1.0)
    picture.await_that(lambda: picture.kinds() == ["Joined", "Left"])

    assert here.get("p", fresh=True) is None


def test_a_newer_life_takes_the_name_and_the_older_is_told(open_one, make_picture):
    old_home, new_home, picture = open_one(), open_one(), make_picture()
    open_one().watch(picture)
    old = old_home.publish("p", record(1))
    picture.await_that(lambda: "p" in picture.peers)

    new = new_home.publish("p", record(2))
    with pytest.raises(NameTaken) as raised:
        old.ended.result(10)

    assert (raised.value.epoch, raised.value.holder_epoch) == (1, 2)
    assert (old.state, new.state) == ("lost", "held")
    with pytest.raises(NameTaken):
        old.update(b"late")
    assert old.withdraw()  # there is nothing of it
    assert new_home.get("p", fresh=True) == record(2)
    picture.await_that(lambda: picture.epochs() == {"p": 2})
    assert picture.kinds() == ["Joined", "Changed"]
    assert old_home.counters().lost == 1


def test_a_newer_life_in_the_same_process_takes_the_name_as_well(open_one):
    directory = open_one()
    old = directory.publish("p", record(1))

    new = directory.publish("p", record(2))

    assert isinstance(old.ended.exception(10), NameTaken)
    assert new.state == "held"


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_life_that_is_not_newer_is_refused(open_one, epoch):
    here, there = open_one(), open_one()
    held = here.publish("p", record(2))

    for directory in (here, there):
        with pytest.raises(NameTaken, match="epoch 2 lives under that name"):
            directory.publish("p", record(epoch))

    assert held.state == "held"
    assert here.get("p", fresh=True) == record(2)
    assert there.counters().lost == there.counters().published == 0


def test_an_update_while_a_newer_life_has_the_name_ends_the_older(open_one):
    old = open_one(ttl_s=60.0).publish("p", record(1))  # no heartbeat will tell it
    open_one().publish("p", record(2))

    with pytest.raises(NameTaken):
        old.update(b"late")

    assert old.state == "lost"


def test_the_largest_record_is_published_and_many_of_them_are_listed(open_one):
    here, there = open_one(), open_one()
    large = record(1, b"\0" * MAX_METADATA_BYTES, **{f"l{n}": "x" * 256 for n in range(32)})

    for number in range(6):
        here.publish(f"p{number}", large)

    assert there.list() == {f"p{number}": large for number in range(6)}


def test_more_peers_than_fit_into_an_answer_are_listed(open_one):
    here = open_one(ttl_s=30.0)
    names = {f"p{number}" for number in range(100)}
    for name in names:
        publish_without_heartbeats(here, name, ttl_s=30)

    assert set(open_one().list()) == names


def test_a_watch_from_any_moment_adds_up(open_one, make_picture):
    here = open_one(ttl_s=30.0)
    pictures = []

    for number in range(30):
        here.publish(f"p{number}", record())
        if number % 10 == 5:
            pictures.append(make_picture())
            open_one().watch(pictures[-1])

    names = {f"p{number}" for number in range(30)}
    for picture in pictures:
        picture.await_that(lambda picture=picture: set(picture.peers) == names)


def test_a_slow_callback_blocks_neither_heartbeats_nor_other_watches(open_one, make_picture):
    directory, picture = open_one(ttl_s=1.0), make_picture()
    entered, may_go_on = threading.Event(), threading.Event()

    def slow(event):
        entered.set()
        may_go_on.wait(20)

    directory.watch(slow)
    registration = directory.publish("p", record())
    assert entered.wait(10)
    directory.watch(picture)
    beats = directory.counters().beats
    for number in range(5):
        directory.publish(f"other-{number}", record())
    picture.await_that(lambda: len(picture.peers) == 6)
    other = open_one().watch()
    while directory.counters().beats < beats + 20:
        other.next(0.05)

    assert registration.state == "held"
    may_go_on.set()


def test_a_watch_takes_its_turn_with_a_deadline(open_one):
    directory = open_one()
    watch = directory.watch(labels=DECODE)
    directory.publish("x", record(role="prefill"))
    directory.publish("y", record(role="decode"))

    assert watch.next(10).name == "y"
    started = time.monotonic()
    assert watch.next(0.05) is None
    assert time.monotonic() - started >= 0.05


def test_asyncio_awaits_the_end_of_a_life(open_one):
    here, there = open_one(), open_one()

    async def live() -> None:
        registration = await asyncio.to_thread(here.publish, "p", record(1))
        ended = asyncio.wrap_future(registration.ended)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ended), 0.01)
        impatient = asyncio.wrap_future(registration.ended)
        impatient.cancel()  # which is nobody else's business
        await asyncio.to_thread(there.publish, "p", record(2))
        with pytest.raises(NameTaken):
            await asyncio.wait_for(ended, 10)

    asyncio.run(live())


def test_clusters_do_not_see_each_other(open_one, cluster):
    here, there = open_one(), open_one(cluster=f"{cluster}-2")

    here.publish("p", record(1))
    there.publish("p", record(5))

    assert here.find("p") == record(1)
    assert there.find("p") == record(5)


def test_a_closed_directory_withdraws_what_it_published_and_refuses_more(open_one):
    here, there = open_one(), open_one()
    registration = here.publish("p", record())
    watch = here.watch()
    there.find("p")

    with here:
        pass
    here.close()

    assert registration.state == "withdrawn"
    assert there.get("p", fresh=True) is None
    assert watch.closed
    for refused in (lambda: here.publish("p", record()), here.list, here.watch):
        with pytest.raises(DirectoryUnavailable, match="this directory is closed"):
            refused()


def test_who_waits_for_a_peer_is_told_when_the_directory_is_closed(open_one):
    directory = open_one()
    assert directory.list() == {}
    timer = threading.Timer(0.05, directory.close)
    timer.start()

    with pytest.raises(DirectoryUnavailable, match="this directory is closed"):
        directory.find("p", 10)
    timer.join()


def test_a_registration_ends_with_its_block(open_one):
    directory = open_one()

    with directory.publish("p", record()) as registration:
        assert directory.get("p", fresh=True) == record()

    assert registration.state == "withdrawn"
    assert directory.get("p", fresh=True) is None


def test_the_age_of_what_is_known_is_told(open_one):
    directory = open_one()

    assert directory.silent_s == math.inf
    directory.list()

    assert directory.silent_s < 5


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "x" * 200])
def test_a_name_that_is_none_is_refused(open_one, name):
    directory = open_one()

    with pytest.raises(InvalidValue):
        directory.publish(name, record())
    with pytest.raises(InvalidValue):
        directory.get(name, fresh=True)


def test_a_ttl_of_nothing_is_refused(open_one):
    with pytest.raises(InvalidValue, match="ttl_s"):
        open_one().publish("p", record(), ttl_s=0)
