"""Ends of the TCP transport with real leases and control servers, and what stands in their way."""

import ctypes
import socket
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

from stafette.kvtransfer.buffers import Shape, region_of
from stafette.kvtransfer.control.auth import Identity
from stafette.kvtransfer.control.client import ControlClient
from stafette.kvtransfer.control.config import ControlConfig
from stafette.kvtransfer.control.endpoint import NAME, Endpoint
from stafette.kvtransfer.control.server import ControlServer
from stafette.kvtransfer.extents import Extents, merge_pairs
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.kvtransfer.leases.held import Terms
from stafette.kvtransfer.leases.table import LeaseTable
from stafette.kvtransfer.ledger import Ledger
from stafette.kvtransfer.transport import Grant, PeerInfo, ReadJob, Surroundings
from stafette.kvtransfer.transports.tcp import TcpTransport
from stafette.kvtransfer.transports.tcp_config import TcpConfig

TOKEN = b"the token of this cluster"
DEADLINE_S = 20.0  # of what takes milliseconds on a quiet machine
BLOCK = 4096
RECEIVED = 256 << 10  # that a proxy's socket takes before it is read


class Job(ReadJob):
    """A read as the agent posts it. Nobody watches its deadline but the transport."""

    lends = False  # whether who waits for it lends his thread

    def __init__(self, local, grant, pairs, timeout_s, verify) -> None:
        self.link = None  # when it has started
        into = Extents.of(local.name, [(into, length) for into, _, length in pairs])
        source = Extents.of(grant.region.name, [(start, length) for _, start, length in pairs])
        self.local, self.remote, self.grant = local, grant.region, grant
        self.into, self.source = merge_pairs(into, source)
        self.deadline = time.monotonic() + timeout_s
        self.verify = verify
        self.stop = ctypes.c_int32(0)
        self.moved = 0
        self.error = None
        self.finished = threading.Event()

    def advance(self, nbytes):
        assert not self.finished.is_set()
        self.moved += nbytes

    def finish(self, error=None):
        assert not self.finished.is_set(), "a job finishes once"
        self.error = error
        self.finished.set()

    def outcome(self, timeout_s=DEADLINE_S):
        """Return the error that it ended with, None when everything arrived."""
        if self.lends and self.link is not None:
            until = time.monotonic() + timeout_s
            self.link.lend(self, until)
            timeout_s = until - time.monotonic()
        assert self.finished.wait(timeout_s), "the job did not end"
        return self.error


class End:
    """What an agent is to its transport: leases, a control server, regions."""

    def __init__(self, name="owner", epoch=7, tls=(None, None), **options) -> None:
        self.name, self.epoch = name, epoch
        self.ledger = Ledger(epoch, 1 << 10)
        self.leases = LeaseTable(name, self.ledger, LeaseConfig(), time.monotonic)
        surroundings = Surroundings(name, epoch, self.leases, self.ledger)
        self.transport = TcpTransport(surroundings, TcpConfig(**options))
        self._control = ControlConfig(token=TOKEN, tls_server=tls[0], tls_client=tls[1])
        self.server = ControlServer(self._control, self._identity, {}, self._accept)
        self._clients = []

    @property
    def counters(self):
        return self.transport.counters()

    @property
    def num_claims(self) -> int:
        return sum(lease.claims for lease in self.leases._leases.values())

    def info(self, port: int | None = None) -> PeerInfo:
        """Return how peers reach this end, perhaps by another port."""
        endpoint = self.server.endpoint
        shown = Endpoint(endpoint.host, port or endpoint.port, endpoint.unix)
        endpoints = {NAME: shown.pack(), "tcp": self.transport.endpoint()}
        return PeerInfo(self.name, self.epoch, f"host of {self.name}", endpoints)

    def add(self, buffer, name, generation=1):
        """Return a region; a number makes one of that many bytes, all of them 0."""
        memory = np.zeros(buffer, np.uint8) if isinstance(buffer, int) else buffer
        region = region_of(memory, Shape(name, BLOCK, generation))
        self.ledger.add_region(name, region.info.num_blocks)
        return region

    def grant(self, region, blocks=None) -> Grant:
        """Lease blocks of a region, all of them where none are named."""
        chosen = range(region.info.num_blocks) if blocks is None else blocks
        lease = self.leases.grant(region, chosen, Terms("read", 60.0))
        return Grant(lease.id, self.epoch, lease.slot, region.info, lease.blocks, lease.generations)

    def link_to(self, owner: "End", port: int | None = None):
        info = owner.info(port)
        client = ControlClient(self._control, self._identity, info)
        self._clients.append(client)
        return self.transport.connect(info, client)

    def close(self) -> None:
        self.transport.close()
        self.server.close()
        for client in self._clients:
            client.close()
        self.leases.close()
        self.ledger.close()

    def _identity(self) -> Identity:
        return Identity(self.info())

    def _accept(self, purpose, connection, peer):
        assert purpose == "tcp"
        self.transport.accept(connection, peer)


class Pair:
    """An owner with a pool of random bytes, a reader with an empty one, and a link."""

    def __init__(self, owner: End, reader: End, nbytes: int, port: int | None = None) -> None:
        self.owner, self.reader = owner, reader
        content = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
        self.source = owner.add(content, "source")
        self.into = reader.add(nbytes, "into")
        self.grant = owner.grant(self.source)
        self.link = reader.link_to(owner, port)

    def job(self, *pairs, timeout_s=DEADLINE_S, verify=False, grant=None) -> Job:
        """Return a job of (into, source, length) each; the whole pool where none is named."""
        whole = [(0, 0, self.source.info.nbytes)]
        return Job(self.into, grant or self.grant, pairs or whole, timeout_s, verify)

    def read(self, *pairs, **options) -> Job:
        job = self.job(*pairs, **options)
        job.link = self.link
        self.link.start(job)
        return job

    def cancel(self, job: Job) -> None:
        job.stop.value = 1
        self.link.interrupt(job)

    def arrived(self) -> bool:
        return bool(np.array_equal(self.into.memory, self.source.memory))


class Proxy:
    """Stands between a reader and an owner, and does to what the owner says what a test wants."""

    def __init__(self, owner: End) -> None:
        self._owner = owner.server.endpoint
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.hold_after = None  # bytes from the owner, on each connection
        self.flip_at = None
        self.bytes_per_s = None
        self.look_at = lambda data: None  # bytes from the owner
        self.reached = threading.Event()  # `hold_after` bytes have gone by
        self._go_on = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads = [self._run(self._accept)]

    def release(self) -> None:
        """Let everything go by that was held."""
        self.hold_after = None
        self._go_on.set()

    def cut(self) -> None:
        """Close all connections; new ones may come."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.release()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
        for each in (self._listener, *self._sockets):
            each.close()

    def _run(self, target, *arguments) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                reader, _ = self._listener.accept()
                owner = self._connect()
            except OSError:
                return
            for each in (reader, owner):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [reader, owner]
            self._threads.append(self._run(self._forward, reader, owner))
            self._threads.append(self._run(self._forward_back, owner, reader))

    def _connect(self) -> socket.socket:
        """What is held waits at the owner: how much a system would take off it must not matter."""
        owner = socket.socket()
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED)
        owner.connect((self._owner.host, self._owner.port))
        return owner

    def _forward(self, reader, owner) -> None:
        with suppress(OSError):
            while data := reader.recv(1 << 16):
                owner.sendall(data)
        self._end(reader, owner)

    def _forward_back(self, owner, reader) -> None:
        passed = 0
        with suppress(OSError):
            while data := bytearray(owner.recv(1 << 16)):
                self.look_at(data)
                if self.flip_at is not None and 0 <= self.flip_at - passed < len(data):
                    data[self.flip_at - passed] ^= 1
                passed = self._pass_on(reader, data, passed)
        self._end(reader, owner)

    def _pass_on(self, reader, data, passed) -> int:
        hold_after = self.hold_after
        if hold_after is not None and passed + len(data) > hold_after:
            first = max(0, hold_after - passed)
            reader.sendall(data[:first])
            self.reached.set()
            assert self._go_on.wait(DEADLINE_S)
            data, passed = data[first:], passed + first
        reader.sendall(data)
        if self.bytes_per_s:
            time.sleep(len(data) / self.bytes_per_s)
        return passed + len(data)

    def _end(self, *both) -> None:
        for each in both:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def lending(monkeypatch, request):
    """Whether threads that wait are lent; parametrize it indirectly."""
    monkeypatch.setattr(Job, "lends", request.param)


def pytest_generate_tests(metafunc):
    if "kinds" in metafunc.fixturenames:
        some = [(True, True), (True, False), (False, True), (False, False)]
        names = ["both native", "native reads pure", "pure reads native", "both pure"]
        metafunc.parametrize("kinds", some, ids=names, scope="module")


@pytest.fixture
def ends():
    """Make ends; they are closed in the end, and no thread of theirs is left."""
    before, made = set(threading.enumerate()), []

    def make(name="owner", **options) -> End:
        made.append(End(name, **options))
        return made[-1]

    yield make
    for end in made:
        end.close()
    deadline = time.monotonic() + DEADLINE_S
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.005)
    for end in made:
        assert end.num_claims == 0


@pytest.fixture
def proxies(ends):
    made = []

    def make(owner: End) -> Proxy:
        made.append(Proxy(owner))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture(scope="session")
def make_pair():
    return Pair


@pytest.fixture
def pairs(ends):
    """Make an owner and a reader; options are both sides'."""

    def make(nbytes=1 << 20, *, through=None, owner=None, **options) -> Pair:
        owner = owner or ends("owner", **options)
        port = None if through is None else through.port
        return Pair(owner, ends("reader", epoch=8, **options), nbytes, port)

    return make
