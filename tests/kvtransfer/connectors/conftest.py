"""Agents of one process, over a transport that copies in threads of its own, or as a test says."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stafette.kvtransfer import registry
from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.connectors.connector import KvRequest, KvShare, Save
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.connectors.p2p.connector import P2pConnector
from stafette.kvtransfer.errors import KvTransferError, PeerLost
from stafette.kvtransfer.layout import BlockLayout
from stafette.kvtransfer.transport import Capabilities, Link, Transport

TOKEN = b"the cluster's token"
LAYOUT = BlockLayout(num_layers=2, num_heads=2, block_size=4, head_dim=2, dtype="float16")


class CopyTransport(Transport):
    """Reads at once, past the owner's checks but for the lease's life, from the same process.

    `before` is called with each job, in the thread that does it; what it returns fails the job.
    """

    memory: dict[tuple[str, str], np.ndarray] = {}
    gates: dict[str, object] = {}

    def __init__(self, name: str, surroundings, options=None) -> None:
        self.name = name
        host = frozenset({"host"})
        self.capabilities = Capabilities(host, host, True, 10.0, 1.0)
        self.before: Callable[[object], KvTransferError | None] = lambda job: None
        self._surroundings = surroundings
        self.gates[surroundings.name] = surroundings.gate

    def endpoint(self):
        return {}

    def attach(self, region):
        self.memory[self._surroundings.name, region.name] = region.memory
        return None

    def detach(self, region):
        if self.memory.get((self._surroundings.name, region.name)) is region.memory:
            del self.memory[self._surroundings.name, region.name]

    def unreachable(self, peer, remote, local):
        return ""

    def connect(self, peer, control):
        return CopyLink(self, peer)

    def copy(self, peer: str, job) -> None:
        source = self.memory[peer, job.source.region]
        with self.gates[peer].claim(self._surroundings.name, job.grant.lease_id, job.source):
            for to, origin, length in zip(
                job.into.offsets, job.source.offsets, job.into.lengths, strict=True
            ):
                to, origin, length = int(to), int(origin), int(length)
                job.local.memory[to : to + length] = source[origin : origin + length]
                job.advance(length)

    def close(self):
        pass


class CopyLink(Link):
    def __init__(self, transport: CopyTransport, peer) -> None:
        self._transport = transport
        self._peer = peer
        self._threads = ThreadPoolExecutor(2)
        self._closed = threading.Event()

    def start(self, job):
        self._threads.submit(self._do, job)

    def interrupt(self, job):
        pass

    def close(self):
        self._closed.set()
        self._threads.shutdown(wait=False)

    def _do(self, job):
        error = self._transport.before(job)
        if error is None and self._closed.is_set():
            error = PeerLost(self._peer.name, "the link was closed")
        if error is None:
            try:
                self._transport.copy(self._peer.name, job)
            except KvTransferError as refusal:
                error = refusal
        job.finish(error)


class Worker:
    """An agent with a pool of blocks, one share or several, and a p2p connector on them."""

    def __init__(self, agent: Agent, layouts, num_blocks: int, **config) -> None:
        self.agent = agent
        self.connector = P2pConnector(agent, P2pConfig(**config))
        self.pools = [np.zeros((num_blocks, layout.block_bytes), np.uint8) for layout in layouts]
        shares = [KvShare(p, x) for p, x in zip(self.pools, layouts, strict=True)]
        self.connector.register(shares)
        self.released: list[tuple[int, ...]] = []

    @property
    def transport(self) -> CopyTransport:
        return self.agent._transports["shm"]

    def fill(self, seed: int) -> None:
        for number, pool in enumerate(self.pools):
            random = np.random.default_rng((seed, number))
            pool[:] = random.integers(0, 256, pool.shape, np.uint8)

    def save(self, request: KvRequest, first: int, blocks) -> None:
        """Give blocks of a request to the connector, as an engine that has computed them does."""
        some = request.hashes[first : first + len(blocks)]
        parent = request.hashes[first - 1] if first else bytes(16)
        note = lambda: self.released.append(tuple(blocks))  # noqa: E731
        save = Save(
            request.request_id, first, parent, some, tuple(blocks), note, params=request.params
        )
        self.connector.save_layer(-1, save)


@pytest.fixture
def make_agent(monkeypatch):
    made: list[Agent] = []
    monkeypatch.setattr(registry, "make", CopyTransport)

    def make(name: str, **config) -> Agent:
        defaults = {"token": TOKEN, "transports": ("shm",), "call_timeout_s": 2.0}
        agent = Agent(AgentConfig(name=name, **(defaults | config)))
        made.append(agent)
        return agent

    yield make
    for agent in made:
        agent.close()


@pytest.fixture
def make_worker(make_agent):
    made: list[Worker] = []

    def make(name: str, layouts=(LAYOUT,), num_blocks: int = 32, agent=None, **config) -> Worker:
        worker = Worker(make_agent(name, **(agent or {})), layouts, num_blocks, **config)
        made.append(worker)
        return worker

    yield make
    for worker in made:
        worker.connector.close()


@pytest.fixture
def pair(make_worker):
    """Return (owner, reader), which know each other; the owner's pool is full of bytes."""
    owner, reader = make_worker("owner"), make_worker("reader")
    owner.fill(1)
    owner.agent.add_peer(reader.agent.metadata())
    reader.agent.add_peer(owner.agent.metadata())
    return owner, reader


def make_request(num_blocks: int, params=None, request_id: str = "r1") -> KvRequest:
    hashes = tuple(bytes([i]) * 16 for i in range(1, num_blocks + 1))
    return KvRequest(request_id, range(4 * num_blocks + 1), hashes, 4, params=params or {})


@pytest.fixture(scope="session")
def request_of():
    return make_request


@pytest.fixture(scope="session")
def layout():
    return LAYOUT
