"""Routers tell each other their reservations over ZeroMQ: each publishes its own, and hears others.

Every connection is encrypted and authenticated by CURVE with a key that follows from the cluster's
secret: who does not have it cannot even shake hands, and no frame can be forged or played again.
Frames are [kind, msgpack]. What is lost is made good by the next summary; who is silent for too
long is dead, and what it had placed is nobody's.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b

import zmq

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.event_stream import wire
from stafette.kvtransfer.event_stream.publisher import LOOPBACK
from stafette.kvtransfer.strict import pack, text, unpack
from stafette.router.errors import InvalidValue
from stafette.router.reservations import (
    MAX_MESSAGE_BYTES,
    Change,
    Reserved,
    Summary,
    decode,
    encode,
)
from stafette.router.router import KvRouter

logger = logging.getLogger(__name__)

_CHANGE, _BEAT, _BYE = b"change", b"beat", b"bye"
_MAX_NAME_BYTES = 512
_BURST = 256  # frames; then the event loop has other things to do
_QUEUE_FRAMES = 10_000  # of each peer; one that is slower loses some
_LINGER_MS = 200  # for the word that we leave
_MAX_CHAIN_BYTES = 4 << 20  # of a summary; above, it tells of no blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipConfig:
    address: str | None = None  # where others hear us; None: any port, where there are peers
    peers: tuple[str, ...] = ()  # host:port, or tcp://host:port, of the others
    name: str = "router"  # each life of it has a name of its own
    beat_s: float = 0.5  # an idle router says so often that it lives
    summary_s: float = 5.0
    silent_after_s: float = 3.0  # what a silent router had placed is forgotten

    @property
    def wanted(self) -> bool:
        return bool(self.peers) or self.address is not None

    def __post_init__(self) -> None:
        for name in ("beat_s", "summary_s", "silent_after_s"):
            if not getattr(self, name) > 0:
                raise InvalidValue(f"gossip.{name}", getattr(self, name), "must be above 0")
        if self.silent_after_s < 2 * self.beat_s:
            remedy = f"must be at least two beats of {self.beat_s:g} s"
            raise InvalidValue("gossip.silent_after_s", self.silent_after_s, remedy)


@dataclass(slots=True)
class GossipCounters:
    sent: int = 0
    unsent: int = 0  # to nobody who listened, or too much at once
    received: int = 0
    malformed: int = 0
    lost_peers: int = 0


class Gossip:
    """Used by the event loop's thread alone; `publish` never waits."""

    def __init__(self, config: GossipConfig, key: bytes, clock: Callable[[], float]) -> None:
        self.counters = GossipCounters()
        self.router_id = f"{config.name}@{secrets.token_hex(4)}"
        self._config = config
        self._clock = clock
        self._heard: dict[str, float] = {}  # router -> when
        self._beat_at = self._summary_at = float("-inf")
        self._router: KvRouter | None = None
        self._secret = secret = blake2b(key, digest_size=32, person=b"router gossip").digest()
        self._context = wire.Context()
        try:
            self._out = self._make_publisher()
            self.address = wire.bind(self._out, config.address or LOOPBACK, secret)
            self._in = self._make_subscriber()
            for peer in config.peers:
                wire.connect(self._in, peer_address(peer), secret)
        except BaseException:
            self._context.destroy(linger=0)
            raise

    @property
    def peers(self) -> list[str]:
        """The routers that were heard of late."""
        return sorted(self._heard)

    def start(self, router: KvRouter, loop: asyncio.AbstractEventLoop) -> None:
        self._router = router
        loop.add_reader(self._in.fileno(), self._read)

    def meet(self, peer: str) -> None:
        """Hear another router too."""
        wire.connect(self._in, peer_address(peer), self._secret)

    def publish(self, change: Change) -> None:
        self._send(_CHANGE, encode(self.router_id, change))

    def tick(self, now: float) -> None:
        """Read what a descriptor that tells once may have left; say that we live; find the dead."""
        self._read()
        if self._newcomers() or now >= self._summary_at:
            self._summary_at = self._beat_at = now + self._config.summary_s
            self._beat_at = now + self._config.beat_s
            self.publish(_bounded(self._own().sharing.summary()))
        elif now >= self._beat_at:
            self._beat_at = now + self._config.beat_s
            self._send(_BEAT, pack([self.router_id]))
        for router_id, heard_at in list(self._heard.items()):
            if now - heard_at > self._config.silent_after_s:
                logger.warning("router %s is silent: what it had placed is forgotten", router_id)
                self.counters.lost_peers += 1
                self._forget(router_id)

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._in.fileno())
        self._send(_BYE, pack([self.router_id]))
        self._in.close(linger=0)
        self._out.close(linger=_LINGER_MS)
        self._context.term()

    def _read(self) -> None:
        if self._in.closed:  # since this was put off
            return
        for _ in range(_BURST):
            try:
                frames = self._in.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.counters.received += 1
            try:
                self._take(frames)
            except MalformedMessage as error:
                self.counters.malformed += 1
                logger.warning("a router's message is dropped: %s", error)
        asyncio.get_running_loop().call_soon(self._read)

    def _take(self, frames: list[bytes]) -> None:
        change: Change | None = None
        match frames:
            case [b"change", data]:
                router_id, change = decode(data)
            case [(b"beat" | b"bye"), data]:
                router_id = _read_name(data)
            case _:
                raise MalformedMessage("message", "[kind, content]")
        if router_id == self.router_id:  # we are among our own peers
            return
        if frames[0] == _BYE:
            self._forget(router_id)
            return
        if router_id not in self._heard:
            logger.info("router %s is there", router_id)
        self._heard[router_id] = self._clock()
        if change is not None:
            self._own().apply(router_id, change)

    def _forget(self, router_id: str) -> None:
        self._heard.pop(router_id, None)
        self._own().forget_router(router_id)

    def _newcomers(self) -> bool:
        """Tell whether somebody began to listen since the last time."""
        found = False
        with suppress(zmq.Again):
            while True:
                found |= self._out.recv(zmq.NOBLOCK).startswith(b"\x01")
        return found

    def _send(self, kind: bytes, data: bytes) -> None:
        if len(data) > MAX_MESSAGE_BYTES:
            self.counters.unsent += 1
            return
        try:
            self._out.send_multipart((kind, data), zmq.NOBLOCK)
            self.counters.sent += 1
        except zmq.Again:
            self.counters.unsent += 1

    def _own(self) -> KvRouter:
        assert self._router is not None, "start comes first"
        return self._router

    def _make_publisher(self) -> wire.Socket:
        socket = self._context.socket(zmq.XPUB)
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # each one that comes, not only the first
        socket.sndhwm = _QUEUE_FRAMES
        socket.maxmsgsize = wire.REQUEST_BYTES
        return socket

    def _make_subscriber(self) -> wire.Socket:
        socket = self._context.socket(zmq.SUB)
        socket.rcvhwm = 0  # a full queue on a connection made anew would end the process
        socket.maxmsgsize = MAX_MESSAGE_BYTES + wire.REQUEST_BYTES
        socket.reconnect_ivl, socket.reconnect_ivl_max = 100, 2_000
        socket.subscribe(b"")
        return socket


def peer_address(peer: str) -> str:
    """Return a peer's address as ZeroMQ has it."""
    address = peer if "://" in peer else f"tcp://{peer}"
    _, _, port = address.rpartition(":")
    if not address.startswith(("tcp://", "ipc://")) or (
        address.startswith("tcp://") and not port.isdecimal()
    ):
        raise InvalidValue("peer", peer, "must be host:port")
    return address


def _bounded(summary: Summary) -> Summary:
    """A summary tells of all reservations: where their blocks are too many, of none of them."""
    size = sum(len(stay.chain) for one in summary.reserved for _, stay in one.stays)
    if size <= _MAX_CHAIN_BYTES:
        return summary
    bare = [
        Reserved(one.request_id, tuple((t, replace(stay, chain=b"")) for t, stay in one.stays))
        for one in summary.reserved
    ]
    return Summary(tuple(bare), summary.computed)


def _read_name(data: bytes) -> str:
    match unpack(data, _MAX_NAME_BYTES * 2):
        case [name]:
            return text(name, "router id", _MAX_NAME_BYTES)
    raise MalformedMessage("message", "[router id]")
