"""Agents with a control server each, clients of theirs, and a check that nothing leaks."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from stafette.kvtransfer.control.auth import Identity
from stafette.kvtransfer.control.client import ControlClient
from stafette.kvtransfer.control.config import ControlConfig
from stafette.kvtransfer.control.endpoint import NAME
from stafette.kvtransfer.control.server import ControlServer, SlowOperation
from stafette.kvtransfer.transport import PeerInfo

TOKEN = b"the token of this cluster"
DIGEST = b"model-a"
DEADLINE_S = 20.0  # of what takes milliseconds on a quiet machine
HERE, ELSEWHERE = "this host", "another host"
ADDRESS = "subjectAltName=IP:127.0.0.1"
PROCESS = Path(__file__).with_name("server_process.py")


def configure(**options) -> ControlConfig:
    return ControlConfig(**{"token": TOKEN, "digest": DIGEST} | options)


class Owner:
    """An agent's listening side, whose operations tests can hold up."""

    def __init__(self, name="owner", epoch=7, host_id=HERE, operations=None, **options):
        self.peers, self.streams = [], []
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.later = Future()
        self.on_stream = lambda purpose, connection, peer: self.streams.append(
            (purpose, connection, peer)
        )
        config = configure(**options)
        self._self = (name, epoch, host_id)
        self.server = ControlServer(
            config,
            self.identity,
            self._operations() | (operations or {}),
            lambda *stream: self.on_stream(*stream),
            self.peers.append,
        )

    @property
    def info(self) -> PeerInfo:
        name, epoch, host_id = self._self
        return PeerInfo(name, epoch, host_id, {NAME: self.server.endpoint.pack()})

    def identity(self) -> Identity:
        return Identity(self.info, b"the owner's metadata")

    def counters(self):
        return self.server.counters()

    def dial(self, unix: bool = False) -> socket.socket:
        """Return a bare connection, as a stranger makes it."""
        endpoint = self.server.endpoint
        if not unix:
            return socket.create_connection((endpoint.host, endpoint.port), DEADLINE_S)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(DEADLINE_S)
        connection.connect(f"\0{endpoint.unix}")
        return connection

    def close(self) -> None:
        self.gate.set()
        self.server.close()
        for _, connection, _ in self.streams:
            connection.close()

    def _operations(self):
        def held_up(peer, payload):
            self.entered.release()
            assert self.gate.wait(DEADLINE_S)
            return payload

        return {
            "echo": lambda peer, payload: payload,
            "who": lambda peer, payload: [peer.name, peer.epoch],
            "held up": SlowOperation(held_up),
            "nap": SlowOperation(lambda peer, seconds: time.sleep(seconds)),
            "later": lambda peer, payload: self.later,
        }


class ServerProcess:
    """An owner in a process of its own, which can be stopped and killed."""

    def __init__(self, **options) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(PROCESS), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        name, epoch, host_id, endpoint = json.loads(self.process.stdout.readline())
        self.info = PeerInfo(name, epoch, host_id, {NAME: endpoint})

    def stop(self) -> None:
        """Return when every one of its threads stands still."""
        os.kill(self.process.pid, signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")
        while any(b") T " not in (task / "stat").read_bytes() for task in tasks.iterdir()):
            time.sleep(0.001)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        self.process.stdin.close()
        self.process.stdout.close()


class Authority:
    """Makes certificates that only those believe who trust it."""

    def __init__(self, folder) -> None:
        self._folder = folder
        self.file = folder / "ca.pem"
        self._make("ca", "/CN=an authority", [])

    def context(self, side: str, name: str = "", trusts=None) -> ssl.SSLContext:
        """Return a server's or client's context, with a certificate if it has a name."""
        is_server = side == "server"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
        if name:
            context.load_cert_chain(self._certificate(name), self._folder / f"{name}.key")
        context.load_verify_locations((trusts or self).file)
        return context

    def _certificate(self, name: str):
        if not (self._folder / f"{name}.pem").exists():
            signed = ["-CA", str(self.file), "-CAkey", str(self._folder / "ca.key")]
            self._make(name, f"/CN={name}", [*signed, "-addext", ADDRESS])
        return self._folder / f"{name}.pem"

    def _make(self, name: str, subject: str, options: list[str]) -> None:
        key, certificate = self._folder / f"{name}.key", self._folder / f"{name}.pem"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-keyout", str(key), "-out", str(certificate)]
        command = ["openssl", "req", "-x509", *curve, *files, "-days", "2", "-subj", subject]
        subprocess.run([*command, *options], check=True, capture_output=True, timeout=60)


def open_files() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # that of the listing itself
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_leaks():
    """After a test there are the same threads and open files as before it."""
    threads, files = set(threading.enumerate()), open_files()
    yield
    deadline = time.monotonic() + DEADLINE_S
    while True:
        new_threads = set(threading.enumerate()) - threads
        new_files = open_files().items() - files.items()
        if not new_threads and not new_files:
            return
        assert time.monotonic() < deadline, (new_threads, new_files)
        time.sleep(0.005)


@pytest.fixture
def start_owner():
    owners = []

    def start(**options) -> Owner:
        owners.append(Owner(**options))
        return owners[-1]

    yield start
    for owner in owners:
        owner.close()


@pytest.fixture
def start_process():
    started = []

    def start(**options) -> ServerProcess:
        started.append(ServerProcess(**options))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def reach():
    """Return a client of an owner, by the Unix socket if both are said to be on this host."""
    clients = []

    def start(owner, name="reader", epoch=3, host_id=HERE, info=None, **options) -> ControlClient:
        rest = {key: options.pop(key) for key in ("on_lost", "clock") if key in options}
        identity = Identity(PeerInfo(name, epoch, host_id), b"the reader's metadata")
        client = ControlClient(configure(**options), lambda: identity, info or owner.info, **rest)
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.close()


@pytest.fixture(scope="session")
def make_authority(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made with the openssl program, which is not installed")
    made = {}

    def make(name: str) -> Authority:
        if name not in made:
            made[name] = Authority(tmp_path_factory.mktemp(name))
        return made[name]

    return make


@pytest.fixture
def authority(make_authority):
    return make_authority("authority")


@pytest.fixture
def tls(authority):
    """Both contexts of an agent, as the config wants them."""
    return {
        "tls_server": authority.context("server", "owner"),
        "tls_client": authority.context("client"),
    }
