"""An etcd that is really started, killed and stopped, and directories of both backends."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from functools import partial
from pathlib import Path

import pytest

from stafette.kvtransfer.directory.config import DirectoryConfig
from stafette.kvtransfer.directory.directory import Directory
from stafette.kvtransfer.directory.etcd.config import EtcdConfig
from stafette.kvtransfer.directory.records import PeerRecord
from stafette.kvtransfer.directory.registry import BACKENDS, open_directory
from stafette.kvtransfer.directory.watches import Changed, Left

DEADLINE_S = 20.0
NO_ETCD = "no etcd binary was found (Debian: apt-get install etcd-server)"
FAST = ("--heartbeat-interval", "20", "--election-timeout", "200")  # its shortest lease is then 1 s


def wait_until(condition) -> None:
    """Wait for what no event announces."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Etcd:
    """One etcd process on ports of its own; the same ones after each start."""

    def __init__(self, folder: Path, name="n0", scheme="http", options=FAST) -> None:
        self.name, self.scheme = name, scheme
        self.client_port, self.peer_port = free_port(), free_port()
        self.endpoint = f"{scheme}://127.0.0.1:{self.client_port}"
        self.cluster = f"{name}=http://127.0.0.1:{self.peer_port}"
        self.data = folder / name
        self._options = options
        self._log = folder / f"{name}.log"
        self._process = None

    def launch(self) -> None:
        peer = f"http://127.0.0.1:{self.peer_port}"
        arguments = {
            "name": self.name,
            "data-dir": str(self.data),
            "listen-client-urls": self.endpoint,
            "advertise-client-urls": self.endpoint,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": self.cluster,
        }
        command = [part for name, value in arguments.items() for part in (f"--{name}", value)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["etcd", *command, *self._options], stdout=log, stderr=log
            )

    def start(self) -> None:
        self.launch()
        wait_until(self.healthy)

    def healthy(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()[-2_000:]
        if self.scheme == "https":  # which asks for a certificate: calls of ours may wait
            return True
        try:
            with urllib.request.urlopen(f"{self.endpoint}/health", timeout=1) as answer:
                return json.load(answer)["health"] == "true"
        except (OSError, urllib.error.URLError):
            return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE_S)

    def wipe(self) -> None:
        shutil.rmtree(self.data)

    def stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def ask(self, path: str, token: str = "", **body):
        """Ask its JSON gateway: another way to it than ours."""
        fields = {name: _as_json(value) for name, value in body.items()}
        headers = {"Authorization": token} if token else {}
        data = json.dumps(fields).encode()
        request = urllib.request.Request(f"{self.endpoint}/v3/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    def values(self, cluster: str) -> dict[str, bytes]:
        prefix = f"/stafette/{cluster}/peers/"
        found = self.ask("kv/range", key=prefix.encode(), range_end=prefix[:-1].encode() + b"0")
        return {
            base64.b64decode(kv["key"]).decode()[len(prefix) :]: base64.b64decode(kv["value"])
            for kv in found.get("kvs", [])
        }

    def put(self, cluster: str, key: bytes, value: bytes) -> None:
        self.ask("kv/put", key=f"/stafette/{cluster}/peers/".encode() + key, value=value)

    def allow(self, role: str, kind: int, prefix: bytes) -> None:
        """Let a role read (0), or read and write (2), what begins so."""
        keys = {"key": _as_json(prefix), "range_end": _as_json(prefix[:-1] + b"0")}
        self.ask("auth/role/grant", name=role, perm={"permType": kind} | keys)

    def compact(self) -> None:
        revision = self.ask("kv/range", key=b"x")["header"]["revision"]
        self.ask("kv/compaction", revision=revision)


def _as_json(value):
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


class Picture:
    """What a watch's callback tells adds up to this; checks that the events fit together."""

    def __init__(self) -> None:
        self.peers: dict[str, PeerRecord] = {}
        self.events = []
        self.changed = threading.Condition()

    def __call__(self, event) -> None:
        with self.changed:
            known = self.peers.pop(event.name, None)
            match event:
                case Left(record=last):
                    assert known == last
                case Changed(record=record, previous=previous):
                    assert known == previous != record
                    self.peers[event.name] = record
                case _:
                    assert known is None
                    self.peers[event.name] = event.record
            self.events.append(event)
            self.changed.notify_all()

    def kinds(self, name: str = "p") -> list[str]:
        return [type(event).__name__ for event in self.events if event.name == name]

    def epochs(self) -> dict[str, int]:
        return {name: record.epoch for name, record in self.peers.items()}

    def await_that(self, condition) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, DEADLINE_S), self.events[-20:]


@pytest.fixture(scope="session")
def eventually():
    return wait_until


@pytest.fixture
def make_picture():
    return Picture


@pytest.fixture(scope="session")
def make_etcd(tmp_path_factory):
    """Make etcd processes, which are killed in the end; a test is skipped where there is none."""
    made = []

    def make(**options) -> Etcd:
        if shutil.which("etcd") is None:
            pytest.skip(NO_ETCD)
        made.append(Etcd(tmp_path_factory.mktemp("etcd"), **options))
        return made[-1]

    yield make
    for etcd in made:
        etcd.kill()


@pytest.fixture(scope="session")
def shared_etcd(make_etcd):
    etcd = make_etcd()
    etcd.start()
    return etcd


@pytest.fixture
def etcd(shared_etcd):
    """The same process for all tests, each of which leaves it running."""
    yield shared_etcd
    shared_etcd.go_on()
    assert shared_etcd.healthy()


@pytest.fixture
def cluster() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def open_any(cluster):
    """Open directories of one cluster; in the end nothing of them is left."""
    opened = []

    defaults = {"cluster": cluster, "ttl_s": 2.0, "timeout_s": 15.0}

    def open_it(backend: str, options=None, **config) -> Directory:
        settings = DirectoryConfig(**(defaults | config))
        opened.append(open_directory(backend, settings, options))
        return opened[-1]

    yield open_it
    for directory in opened:
        directory.close()
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if name.startswith(("directory-", "etcd-watch"))] == []


@pytest.fixture
def open_etcd(open_any, etcd):
    def open_it(*endpoints: str, **config) -> Directory:
        options = EtcdConfig(endpoints=endpoints or (etcd.endpoint,))
        return open_any("etcd", options, **config)

    return open_it


@pytest.fixture(params=BACKENDS)
def open_one(request, open_any):
    """Open directories of one cluster, of each backend in turn."""
    if request.param == "etcd":
        return request.getfixturevalue("open_etcd")
    return partial(open_any, request.param)
