"""Connections to an etcd that are cut or hang, while it goes on and forgets its history."""

import random
import socket
import threading

import pytest

from stafette.kvtransfer.directory.etcd import feed as feeds
from stafette.kvtransfer.directory.records import PeerRecord
from stafette.kvtransfer.errors import NameTaken

DEADLINE_S = 20.0
TTL_S = 1.0  # the shortest that this etcd grants


class Proxy:
    """A TCP connection between a directory and its etcd that can be cut, or hang."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._sockets: list[socket.socket] = []
        self._flows = threading.Event()
        self._flows.set()
        self._open = True
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        self._open = False
        for each in self._sockets:
            _shut(each)

    def heal(self) -> None:
        self._open = True

    def hang(self) -> None:
        """Carry nothing more, without a word to either side."""
        self._flows.clear()

    def flow(self) -> None:
        self._flows.set()

    def close(self) -> None:
        self.cut()
        self.flow()
        _shut(self._listener)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        for each in [self._listener, *self._sockets]:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(near)
            if not self._open:
                _shut(near)
                continue
            try:
                far = socket.create_connection(self._target, 5)
            except OSError:
                _shut(near)
                continue
            self._sockets.append(far)
            for pair in ((near, far), (far, near)):
                self._threads.append(threading.Thread(target=self._carry, args=pair))
                self._threads[-1].start()

    def _carry(self, source, sink) -> None:
        try:
            while data := source.recv(1 << 16):
                self._flows.wait()
                sink.sendall(data)
        except OSError:
            pass
        _shut(source)
        _shut(sink)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


@pytest.fixture
def proxy(etcd):
    between = Proxy(etcd.client_port)
    yield between
    between.close()


def record(epoch: int = 1, metadata: bytes = b"m") -> PeerRecord:
    return PeerRecord(epoch, metadata)


def watched(directory, make_picture, *names: str):
    """Return what a watch tells, once it has told these names."""
    picture = make_picture()
    directory.watch(picture)
    picture.await_that(lambda: set(names) <= set(picture.peers))
    return picture


def test_after_an_outage_of_one_watcher_and_a_compaction_it_is_told_the_difference(
    open_etcd, etcd, proxy, make_picture, eventually
):
    here, there = open_etcd(), open_etcd(proxy.endpoint)
    old = {name: here.publish(name, record()) for name in ("stays", "changes", "leaves")}
    picture = watched(there, make_picture, *old)

    proxy.cut()
    eventually(lambda: there.counters().outages == 1)
    old["leaves"].withdraw()
    old["changes"].update(b"once")
    old["changes"].update(b"twice")
    here.publish("comes and goes", record()).withdraw()
    here.publish("joins", record())
    etcd.compact()
    proxy.heal()
    picture.await_that(lambda: set(picture.peers) == {"stays", "changes", "joins"})

    assert picture.kinds("stays") == ["Joined"]
    assert picture.kinds("changes") == ["Joined", "Changed"]
    assert picture.peers["changes"] == record(1, b"twice")
    assert picture.kinds("comes and goes") == []


def test_a_connection_that_hangs_without_a_word_is_noticed(
    open_etcd, proxy, make_picture, eventually
):
    here, there = open_etcd(ttl_s=TTL_S), open_etcd(proxy.endpoint, ttl_s=TTL_S, timeout_s=0.5)
    here.publish("p", record())
    picture = watched(there, make_picture, "p")

    proxy.hang()
    eventually(lambda: there.counters().outages == 1)
    here.publish("q", record())
    assert there.silent_s > there.config.silence_s
    assert set(there.list()) == {"p"}
    proxy.flow()

    picture.await_that(lambda: set(picture.peers) == {"p", "q"})


def test_a_watch_at_a_compacted_revision_ends_and_is_begun_anew(
    open_etcd, etcd, make_picture, monkeypatch
):
    here, there = open_etcd(), open_etcd()
    here.publish("p", record())
    list_keys, listed = feeds.list_keys, []

    def outdated_at_first(*arguments):
        listing = list_keys(*arguments)
        listed.append(listing.revision)
        if len(listed) == 1:
            listing.revision = 1
            etcd.compact()
        return listing

    monkeypatch.setattr(feeds, "list_keys", outdated_at_first)
    picture = watched(there, make_picture, "p")
    here.publish("q", record())
    picture.await_that(lambda: set(picture.peers) == {"p", "q"})

    assert len(listed) == 2
    assert there.counters().outages == 1


def test_after_joining_and_leaving_at_random_every_picture_equals_the_truth(
    open_etcd, etcd, cluster, proxy, make_picture, eventually
):
    chance = random.Random(11)
    publishers = [open_etcd(ttl_s=30.0) for _ in range(4)]
    pictures = [
        watched(open_etcd(*endpoint, ttl_s=30.0), make_picture)
        for endpoint in ((), (proxy.endpoint,))
    ]
    for publisher in publishers:
        publisher.list()  # who follows what changes learns at once when its name is taken
    alive, epochs = {}, {}

    for step in range(400):
        name = f"peer-{chance.randrange(200)}"
        if name in alive and chance.random() < 0.4:
            alive.pop(name).withdraw()
        else:
            epochs[name] = epochs.get(name, 0) + 1
            older = alive.get(name)
            alive[name] = chance.choice(publishers).publish(name, record(epochs[name]))
            assert older is None or isinstance(older.ended.exception(DEADLINE_S), NameTaken)
        if step % 100 == 70:
            proxy.cut()
            proxy.heal()
        if step == 200:
            etcd.kill()
            etcd.start()

    truth = {name: registration.record.epoch for name, registration in alive.items()}
    for picture in pictures:
        picture.await_that(lambda picture=picture: picture.epochs() == truth)
    assert set(etcd.values(cluster)) == set(truth)
    assert len(truth) > 50
