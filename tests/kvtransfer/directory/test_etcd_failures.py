"""An etcd that is killed, stopped and wiped; publishers that are killed and stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stafette.kvtransfer.directory.etcd.config import EtcdConfig
from stafette.kvtransfer.directory.etcd.store import EtcdStore
from stafette.kvtransfer.directory.records import PeerRecord, encode
from stafette.kvtransfer.directory.store import Claim
from stafette.kvtransfer.errors import DirectoryUnavailable

DEADLINE_S = 20.0
PUBLISHER = Path(__file__).with_name("publisher_process.py")
TTL_S = 1.0  # the shortest that this etcd grants


class PublisherProcess:
    """Speaks to publisher_process.py, line by line."""

    def __init__(self, **settings) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(PUBLISHER), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert json.loads(self._process.stdout.readline()) == "published"

    def ask(self, *question):
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.fixture
def start_publisher(etcd, cluster):
    started = []

    def start(name: str = "p", epoch: int = 1) -> PublisherProcess:
        settings = {"endpoint": etcd.endpoint, "cluster": cluster, "ttl_s": TTL_S}
        started.append(PublisherProcess(**settings, name=name, epoch=epoch))
        return started[-1]

    yield start
    for publisher in started:
        publisher.kill()


def record(epoch: int = 1, metadata: bytes = b"m") -> PeerRecord:
    return PeerRecord(epoch, metadata)


def watched(directory, make_picture, *names: str):
    """Return what a watch tells, once it has told these names."""
    picture = make_picture()
    directory.watch(picture)
    picture.await_that(lambda: set(names) <= set(picture.peers))
    return picture


def test_an_etcd_that_was_killed_and_restarted_goes_on_as_if_nothing_was(
    open_etcd, etcd, cluster, make_picture, eventually
):
    here, there = open_etcd(), open_etcd()
    registration = here.publish("p", record())
    picture = watched(there, make_picture, "p")

    etcd.kill()
    eventually(lambda: there.counters().outages == 1)
    assert there.get("p") == record()
    etcd.start()
    beats = here.counters().beats
    eventually(lambda: here.counters().beats > beats)  # heartbeats go on,
    there.publish("q", record())  # so do puts,
    picture.await_that(lambda: set(picture.peers) == {"p", "q"})  # and so does the watch
    registration.update(b"other")
    picture.await_that(lambda: picture.peers["p"] == record(1, b"other"))

    assert picture.kinds() == ["Joined", "Changed"]
    assert here.counters().republished == 0
    assert set(etcd.values(cluster)) == {"p", "q"}


def test_calls_wait_for_an_etcd_that_is_restarted_meanwhile(open_etcd, etcd):
    directory = open_etcd(timeout_s=15.0)
    directory.publish("p", record())
    etcd.kill()
    timer = threading.Timer(0.2, etcd.start)
    timer.start()

    directory.publish("q", record())

    assert directory.get("p", fresh=True) == record()
    timer.join()


def test_calls_to_an_etcd_that_stays_away_end_at_their_deadline(open_etcd, etcd):
    directory = open_etcd(timeout_s=0.3)
    registration = directory.publish("p", record())
    etcd.kill()

    calls = {
        "publish": lambda: directory.publish("q", record()),
        "list": directory.list,  # nothing was listed before
        "get": lambda: directory.get("p", fresh=True),
        "update": lambda: registration.update(b"other"),
    }
    for call in calls.values():
        with pytest.raises(DirectoryUnavailable, match="etcd 127.0.0.1"):
            call()
    assert not registration.withdraw()
    etcd.start()


def test_an_etcd_that_came_back_empty_is_told_everything_and_nobody_seems_to_leave(
    open_etcd, etcd, cluster, make_picture, eventually
):
    here, there = open_etcd(), open_etcd()
    names = {f"p{number}" for number in range(8)}
    for name in names:
        here.publish(name, record())
    picture = watched(there, make_picture, *names)

    etcd.kill()
    etcd.wipe()
    etcd.start()
    eventually(lambda: set(etcd.values(cluster)) == names)
    there.publish("last", record())
    picture.await_that(lambda: "last" in picture.peers)

    assert [type(event).__name__ for event in picture.events] == ["Joined"] * 9
    assert here.counters().republished == 8


def test_who_died_while_an_etcd_came_back_empty_is_gone_in_the_end(
    open_etcd, etcd, start_publisher, make_picture
):
    start_publisher("lives")
    dying = start_publisher("dies")
    picture = watched(open_etcd(ttl_s=TTL_S), make_picture, "lives", "dies")

    etcd.kill()
    dying.kill()
    etcd.wipe()
    etcd.start()
    picture.await_that(lambda: set(picture.peers) == {"lives"})

    assert picture.kinds("lives") == ["Joined"]


def test_an_etcd_that_hung_for_longer_than_the_ttl_loses_nobody_who_lives(
    open_etcd, etcd, cluster, start_publisher, make_picture, eventually
):
    here, there = open_etcd(ttl_s=TTL_S), open_etcd(ttl_s=TTL_S)
    lives = here.publish("lives", record())
    dying = start_publisher("dies")
    picture = watched(there, make_picture, "lives", "dies")

    etcd.stop()
    eventually(lambda: lives.state == "unconfirmed")
    dying.kill()
    assert set(there.list()) == {"lives", "dies"}
    etcd.go_on()
    picture.await_that(lambda: set(picture.peers) == {"lives"})
    eventually(lambda: lives.state == "held")

    assert picture.kinds("lives") == ["Joined"]
    eventually(lambda: set(etcd.values(cluster)) == {"lives"})


def test_a_publisher_that_was_killed_is_gone_after_its_ttl(
    open_etcd, start_publisher, make_picture
):
    publisher = start_publisher("p")
    picture = watched(open_etcd(ttl_s=TTL_S), make_picture, "p")

    publisher.kill()
    picture.await_that(lambda: picture.peers == {})

    assert picture.kinds() == ["Joined", "Left"]


def test_a_stopped_life_that_wakes_up_does_no_harm_to_the_newer_one(
    open_etcd, start_publisher, make_picture, eventually
):
    old = start_publisher("p", epoch=1)
    picture = watched(open_etcd(ttl_s=TTL_S), make_picture, "p")
    old.stop()
    new = start_publisher("p", epoch=2)
    picture.await_that(lambda: picture.epochs() == {"p": 2})

    old.go_on()
    why = old.ask("why")
    assert old.ask("withdraw")
    picture.await_that(lambda: picture.epochs() == {"p": 2})

    assert "epoch 2 lives under that name" in why
    assert new.ask("state") == "held"
    assert picture.kinds() == ["Joined", "Changed"]


def test_a_late_withdrawal_does_not_remove_the_newer_life(open_etcd, etcd, cluster):
    old = open_etcd(ttl_s=60.0).publish("p", record(1))  # no heartbeat tells it of the newer one
    new = open_etcd().publish("p", record(2))

    assert old.withdraw()

    assert set(etcd.values(cluster)) == {"p"}
    assert new.state == "held"


def test_what_others_wrote_under_our_prefix_is_skipped(open_etcd, etcd, cluster, make_picture):
    here = open_etcd()
    etcd.put(cluster, b"nonsense", b"nonsense")
    etcd.put(cluster, b"\xff\xfe", b"x")
    picture = watched(here, make_picture)
    here.publish("p", record())
    picture.await_that(lambda: "p" in picture.peers)
    etcd.put(cluster, b"more/nonsense", b"")
    etcd.put(cluster, b"last", b"nonsense as well")
    here.publish("last", record())  # nobody lives under that name
    picture.await_that(lambda: "last" in picture.peers)

    assert set(here.list()) == {"p", "last"}
    assert here.counters().malformed == 4


def test_who_was_overwritten_by_others_is_published_again(
    open_etcd, etcd, cluster, make_picture, eventually
):
    here = open_etcd(ttl_s=600.0)  # no heartbeat is due
    here.publish("p", record())
    here.find("p")

    etcd.put(cluster, b"p", b"nonsense")
    eventually(lambda: here.counters().republished == 1)

    assert here.get("p", fresh=True) == record()


@pytest.fixture
def store(etcd, cluster):
    opened = EtcdStore(cluster, EtcdConfig(endpoints=(etcd.endpoint,)))
    yield opened
    opened.close()


def test_a_lease_that_ends_before_the_record_is_written_is_granted_again(store, etcd, monkeypatch):
    claim = Claim("p", 4_711, 1, encode(record()), 5.0)
    lease, leased = store._lease, []

    def ended_at_once(claim, deadline):
        lease(claim, deadline)
        leased.append(claim.hold)
        if len(leased) == 1:
            etcd.ask("lease/revoke", ID=claim.hold)

    monkeypatch.setattr(store, "_lease", ended_at_once)
    store.put(claim, 5)

    assert len(leased) == 2
    assert store.renew(claim, 5)


def test_a_lease_that_has_expired_and_still_exists_is_waited_for(store, monkeypatch):
    claim = Claim("p", 4_712, 1, encode(record()), 5.0)
    store.put(claim, 5)
    answers = [True, False]  # the second is asked first
    monkeypatch.setattr(store, "_keep_alive", lambda claim, deadline: answers.pop())

    store.put(claim, 5)

    assert answers == []


def test_who_forgets_to_close_can_still_exit(etcd, cluster):
    script = """
from stafette.kvtransfer.directory.config import DirectoryConfig
from stafette.kvtransfer.directory.etcd.config import EtcdConfig
from stafette.kvtransfer.directory.etcd.config import EtcdConfig
from stafette.kvtransfer.directory.etcd.store import EtcdStore
from stafette.kvtransfer.directory.records import PeerRecord, encode
from stafette.kvtransfer.directory.store import Claim
from stafette.kvtransfer.directory.registry import open_directory
import sys
options = EtcdConfig(endpoints=(sys.argv[1],))
directory = open_directory("etcd", DirectoryConfig(cluster=sys.argv[2]), options)
directory.publish("p", PeerRecord(1, b"m"))
directory.watch(str)
print(directory.find("p").epoch)
"""
    command = [sys.executable, "-P", "-c", script, etcd.endpoint, cluster]

    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1\n"
