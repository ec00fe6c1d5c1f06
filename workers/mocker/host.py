"""What the mock workers of one process share: a transfer agent for their news, a ZeroMQ context.

The agent is a real one, with its handshake, deadlines and notice of lost peers, but it moves no
blocks. So hundreds of workers in one process cost it a few threads.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import zmq

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.errors import KvTransferError, MalformedMessage, StaleEpoch
from stafette.kvtransfer.event_stream.wire import Context
from stafette.kvtransfer.metadata import MAX_BYTES, MAX_PEER_NAME_BYTES
from stafette.kvtransfer.notifications import MAX_PAYLOAD_BYTES, Notification
from stafette.kvtransfer.strict import octets, pack, text, unpack, whole
from stafette.workers.mocker.news import News, Wire, read_news

_log = logging.getLogger(__name__)
_PREFIX = b"mock:"  # of every notification
_KIND = "mock worker"  # in metadata: what a real worker's does not begin with
_U64_END = 1 << 64
_MAX_SOCKETS = 60_000  # two for each worker


class Hears(Protocol):
    """A worker, as far as news go."""

    def hear(self, peer: str, news: News) -> None: ...

    def lost(self, peer: str) -> None: ...


@dataclass(frozen=True, slots=True)
class _Peer:
    epoch: int
    agent: str  # of its process; empty: it is in this one


class MockHost:
    """Used by one event loop; make it there. Close it after its workers."""

    def __init__(self, config: AgentConfig) -> None:
        self.context: Context = zmq.Context()
        self.context.max_sockets = _MAX_SOCKETS
        self._loop = asyncio.get_running_loop()
        self._workers: dict[str, Hears] = {}  # that live here
        self._peers: dict[str, _Peer] = {}  # that were introduced
        self._agent = Agent(config)
        self._agent.subscribe(_PREFIX, self._notified)
        self._agent.on_lost(lambda agent, for_good: self._post(self._agent_lost, agent, for_good))
        self._probes: set[asyncio.Future[None]] = set()

    @property
    def epoch(self) -> int:
        return self._agent.epoch

    def add(self, name: str, worker: Hears) -> None:
        self._workers[name] = worker

    def remove(self, name: str) -> None:
        """A worker has ended."""
        self._workers.pop(name, None)
        self._lose(name)

    def wire(self, name: str) -> Wire:
        """Return a worker's way to the others."""
        return _HostWire(self, name)

    def metadata(self, name: str) -> bytes:
        """Return what another mock worker's `add_peer` takes."""
        return pack([_KIND, name, self.epoch, self._agent.config.name, self._agent.metadata()])

    def add_peer(self, metadata: bytes) -> str:
        """Get to know a worker of this or another process; KvTransferError when it is none."""
        name, epoch, agent, inner = _read_metadata(metadata)
        known = self._peers.get(name)
        if known is not None and known.epoch > epoch:
            raise StaleEpoch(name, epoch, known.epoch)
        if agent == self._agent.config.name:
            agent = ""
        else:
            self._agent.add_peer(inner)
        self._peers[name] = _Peer(epoch, agent)
        return name

    def close(self) -> None:
        self._agent.close()
        self.context.term()

    def tell(self, sender: str, name: str, news: News) -> bool:
        peer = self._peers.get(name)
        if peer is None:
            return False
        if not peer.agent:
            self._loop.call_soon(self._pass_on, name, sender, news)
            return name in self._workers
        try:
            self._agent.notify(peer.agent, _PREFIX + pack([name, sender, news.pack()]))
        except KvTransferError as error:
            _log.warning("worker %s cannot be told: %s", name, error)
            return False
        return True

    def probe(self, sender: str, name: str) -> None:
        """Let `sender` hear of it when a worker is not there."""
        peer = self._peers.get(name)
        if peer is None or (not peer.agent and name in self._workers):
            return  # it will be known when its first news come
        if not peer.agent:
            self._loop.call_soon(self._lose, name)
            return
        probe = asyncio.ensure_future(self._look_for(peer.agent))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    # In threads of the agent

    def _notified(self, notification: Notification) -> None:
        try:
            name, sender, news = _read_news(notification.payload)
        except MalformedMessage as error:
            _log.warning("peer %s sends what is no news: %s", notification.peer, error)
            return
        self._post(self._pass_on, name, sender, news)

    def _post(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(partial(call, *arguments))
        except RuntimeError:
            _log.debug("the loop has ended")

    # In the loop

    def _pass_on(self, name: str, sender: str, news: News) -> None:
        worker = self._workers.get(name)
        if worker is not None:
            worker.hear(sender, news)

    def _agent_lost(self, agent: str, for_good: bool) -> None:
        if for_good:
            self._lose_all(agent)
        else:
            probe = asyncio.ensure_future(self._look_for(agent))
            self._probes.add(probe)
            probe.add_done_callback(self._probes.discard)

    async def _look_for(self, agent: str) -> None:
        try:
            await asyncio.to_thread(self._agent.connect, agent)
        except KvTransferError as error:
            _log.info("the mock workers of %s are lost: %s", agent, error)
            self._lose_all(agent)

    def _lose_all(self, agent: str) -> None:
        for name in [name for name, peer in self._peers.items() if peer.agent == agent]:
            self._lose(name)

    def _lose(self, name: str) -> None:
        for worker in self._workers.values():
            worker.lost(name)


class _HostWire(Wire):
    def __init__(self, host: MockHost, name: str) -> None:
        self._host = host
        self._name = name

    def tell(self, peer: str, news: News) -> bool:
        return self._host.tell(self._name, peer, news)

    def probe(self, peer: str) -> None:
        self._host.probe(self._name, peer)


def _read_metadata(data: bytes) -> tuple[str, int, str, bytes]:
    match unpack(data, MAX_BYTES):
        case [kind, name, epoch, agent, inner] if kind == _KIND:
            return (
                text(name, "name", MAX_PEER_NAME_BYTES),
                whole(epoch, "epoch", _U64_END),
                text(agent, "agent", MAX_PEER_NAME_BYTES),
                octets(inner, "agent's metadata", MAX_BYTES),
            )
    raise MalformedMessage("metadata", "that of a mock worker: real ones hand KV to real ones only")


def _read_news(payload: bytes) -> tuple[str, str, News]:
    match unpack(payload.removeprefix(_PREFIX), MAX_PAYLOAD_BYTES):
        case [name, sender, news]:
            return (
                text(name, "name", MAX_PEER_NAME_BYTES),
                text(sender, "sender", MAX_PEER_NAME_BYTES),
                read_news(octets(news, "news", MAX_PAYLOAD_BYTES)),
            )
    raise MalformedMessage("news", "[to whom, from whom, what]")
