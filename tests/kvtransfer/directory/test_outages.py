"""What publishers and watchers make of a backend that is down, or that comes back empty."""

import random
import threading
from contextlib import suppress

import pytest

from stafette.kvtransfer.directory.config import DirectoryConfig
from stafette.kvtransfer.directory.directory import Directory
from stafette.kvtransfer.directory.memory import MemoryStore
from stafette.kvtransfer.directory.records import PeerRecord
from stafette.kvtransfer.directory.store import Feed
from stafette.kvtransfer.errors import DirectoryUnavailable

TTL_S = 0.9


class ShakyStore(MemoryStore):
    """Keeps the rules of a store that can be down, and that can lose what it has."""

    def __init__(self) -> None:
        super().__init__()
        self.place = "a shaky store"
        self.down = False
        self.broken = False  # has a bug
        self.rewound = False

    def check(self) -> None:
        if self.broken:
            raise RuntimeError("a bug")
        if self.down:
            raise DirectoryUnavailable(self.place, "it is down")

    def come_back_empty(self) -> None:
        with self._lock:
            self._entries.clear()
        self.rewound = True
        self.down = False

    def put(self, claim, timeout_s):
        self.check()
        super().put(claim, timeout_s)

    def renew(self, claim, timeout_s):
        self.check()
        return super().renew(claim, timeout_s)

    def remove(self, claim, timeout_s):
        self.check()
        super().remove(claim, timeout_s)

    def read(self, name, timeout_s):
        self.check()
        return super().read(name, timeout_s)

    def follow(self, silence_s, timeout_s):
        self.check()
        feed = ShakyFeed(self, super().follow(silence_s, timeout_s))
        feed.rewound, self.rewound = self.rewound, False
        return feed


class ShakyFeed(Feed):
    def __init__(self, store: ShakyStore, inner: Feed) -> None:
        self.snapshot = inner.snapshot
        self.heard_at = inner.heard_at
        self._store, self._inner = store, inner

    def next(self, timeout_s):
        self._store.check()
        changes = self._inner.next(min(timeout_s, 0.02))
        self._store.check()  # what was under way when it broke is lost
        self.heard_at = self._inner.heard_at
        return changes

    def close(self):
        self._inner.close()


@pytest.fixture
def store() -> ShakyStore:
    return ShakyStore()


@pytest.fixture
def open_here(store):
    opened = []

    def open_it(ttl_s: float = TTL_S) -> Directory:
        opened.append(Directory(store, DirectoryConfig(ttl_s=ttl_s, timeout_s=0.2)))
        return opened[-1]

    yield open_it
    for directory in opened:
        directory.close()
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if name.startswith("directory-")] == []


def record(epoch: int = 1, metadata: bytes = b"m") -> PeerRecord:
    return PeerRecord(epoch, metadata)


def test_nothing_known_yet_and_no_backend_is_an_error_that_says_why(store, open_here):
    store.down = True
    directory = open_here()

    for ask in (directory.list, lambda: directory.get("p"), lambda: directory.find("p")):
        with pytest.raises(DirectoryUnavailable, match="a shaky store .* it is down"):
            ask()
    with pytest.raises(DirectoryUnavailable):
        directory.publish("p", record())
    with pytest.raises(DirectoryUnavailable):
        directory.get("p", fresh=True)


def test_a_watch_may_begin_before_the_backend_is_there(store, open_here, make_picture):
    store.down = True
    directory, picture = open_here(), make_picture()

    directory.watch(picture)
    store.down = False
    directory.publish("p", record())

    picture.await_that(lambda: "p" in picture.peers)


def test_what_is_known_stays_usable_while_the_backend_is_down(store, open_here, eventually):
    directory = open_here()
    registration = directory.publish("p", record())
    directory.find("p")

    store.down = True
    eventually(lambda: registration.state == "unconfirmed")

    assert directory.get("p") == directory.find("p") == directory.list()["p"] == record()
    assert directory.silent_s > directory.config.silence_s
    assert directory.counters().failed_beats > 0
    assert directory.counters().outages == 1


def test_after_a_long_outage_those_who_live_were_never_gone(
    store, open_here, make_picture, eventually
):
    here, there, picture = open_here(), open_here(), make_picture()
    registration = here.publish("p", record())
    there.watch(picture)
    picture.await_that(lambda: "p" in picture.peers)

    store.down = True
    eventually(lambda: registration.state == "unconfirmed")
    assert store.expire() is None  # its claim has ended meanwhile
    store.down = False
    eventually(lambda: registration.state == "held")
    eventually(lambda: there.counters().snapshots == 2)
    eventually(lambda: there._picture._patient_until is None)

    assert picture.kinds() == ["Joined"]
    assert here.counters().republished == 1


def test_after_a_long_outage_those_who_died_are_gone_in_the_end(
    store, open_here, make_picture, eventually
):
    here, there, picture = open_here(), open_here(), make_picture()
    registration = here.publish("p", record())
    there.watch(picture)
    picture.await_that(lambda: "p" in picture.peers)

    store.down = True
    registration.withdraw(0.01)
    eventually(lambda: there.silent_s > there.config.silence_s)
    eventually(lambda: store.expire() is None)
    store.down = False
    picture.await_that(lambda: picture.peers == {})

    assert there.counters().kept == 1


def test_a_backend_that_lost_everything_is_told_again_and_nobody_seems_to_leave(
    store, open_here, make_picture, eventually
):
    here, there, picture = open_here(), open_here(), make_picture()
    for number in range(5):
        here.publish(f"p{number}", record())
    there.watch(picture)
    picture.await_that(lambda: len(picture.peers) == 5)

    store.down = True
    eventually(lambda: there.counters().outages == 1)
    store.come_back_empty()
    eventually(lambda: here.counters().republished == 5)
    eventually(lambda: there.counters().snapshots == 2)

    assert len(picture.events) == 5
    assert {name for name in picture.peers if there.get(name, fresh=True)} == set(picture.peers)


def test_after_a_short_outage_the_difference_is_told_at_once(
    store, open_here, make_picture, eventually
):
    here, there, picture = open_here(ttl_s=60), open_here(ttl_s=60), make_picture()
    old = {name: here.publish(name, record()) for name in ("stays", "changes", "leaves")}
    there.watch(picture)
    picture.await_that(lambda: len(picture.peers) == 3)

    store.down = True
    eventually(lambda: there.counters().outages == 1)
    with there._picture.changed:  # until this is free again, it hears of nothing
        store.down = False
        old["leaves"].withdraw()
        old["changes"].update(b"other")
        here.publish("joins", record())
    picture.await_that(lambda: set(picture.peers) == {"stays", "changes", "joins"})
    picture.await_that(lambda: picture.peers["changes"].metadata == b"other")

    assert picture.kinds("stays") == ["Joined"]
    assert there.counters().kept == 0


def test_an_update_during_an_outage_is_made_up_for(store, open_here, eventually):
    directory = open_here()
    registration = directory.publish("p", record())

    store.down = True
    with pytest.raises(DirectoryUnavailable):
        registration.update(b"other")
    store.down = False

    eventually(lambda: directory.get("p", fresh=True) == record(1, b"other"))


def test_a_publication_may_be_tried_again_whatever_became_of_the_first(store, open_here):
    directory = open_here()
    put = store.put

    def written_but_not_answered(claim, timeout_s):
        put(claim, timeout_s)
        raise DirectoryUnavailable(store.place, "the answer was lost")

    store.put = written_but_not_answered
    with pytest.raises(DirectoryUnavailable):
        directory.publish("p", record())
    store.put = put

    assert directory.publish("p", record()).state == "held"


def test_a_withdrawal_during_an_outage_leaves_the_rest_to_the_ttl(store, open_here, eventually):
    directory = open_here()
    registration = directory.publish("p", record())

    store.down = True
    assert not registration.withdraw()
    store.down = False

    assert registration.state == "withdrawn"
    eventually(lambda: directory.get("p", fresh=True) is None)


def test_bugs_of_a_backend_end_neither_heartbeats_nor_the_picture(store, open_here, eventually):
    directory = open_here()
    registration = directory.publish("p", record())
    directory.find("p")

    store.broken = True
    eventually(lambda: directory.counters().failed_beats > 0 and directory.counters().outages == 1)
    store.broken = False
    eventually(lambda: directory.counters().snapshots == 2)

    eventually(lambda: registration.state == "held")
    assert directory.get("p") == record()


def test_who_was_removed_by_others_is_published_again_at_once(store, open_here, eventually):
    directory = open_here(ttl_s=600)  # no heartbeat is due
    registration = directory.publish("p", record())
    directory.find("p")

    store.remove(registration._claim, 1)
    eventually(lambda: directory.counters().republished == 1)

    assert directory.get("p", fresh=True) == record()
    assert registration.state == "held"


def test_many_waits_on_one_outage_end_together(store, open_here):
    directory, errors = open_here(), []
    store.down = True

    def ask():
        try:
            directory.find("p", 0.3)
        except DirectoryUnavailable as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert len(errors) == 20


def num_failed(directories) -> int:
    return sum(directory.counters().failed_beats for directory in directories)


def test_after_any_sequence_of_outages_every_picture_equals_the_truth(
    store, open_here, make_picture, eventually
):
    chance, alive = random.Random(7), {}
    publishers, pictures = [open_here() for _ in range(3)], []
    for _ in range(2):
        pictures.append(make_picture())
        open_here().watch(pictures[-1])

    for step in range(400):
        store.down = chance.random() < (0.1 if not store.down else 0.9)
        if step % 100 == 50:
            store.down = True
            before = num_failed(publishers)
            eventually(lambda before=before: num_failed(publishers) > before)
            store.come_back_empty()
        name = f"p{chance.randrange(20)}"
        if name in alive:
            alive.pop(name).withdraw(0.05)
        if chance.random() < 0.5:
            with suppress(DirectoryUnavailable):
                alive[name] = chance.choice(publishers).publish(name, record(step))
    store.down = False

    truth = {name: registration.record.epoch for name, registration in alive.items()}
    for picture in pictures:
        picture.await_that(lambda picture=picture: picture.epochs() == truth)
    eventually(lambda: {registration.state for registration in alive.values()} == {"held"})
