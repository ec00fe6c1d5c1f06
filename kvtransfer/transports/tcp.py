"""TCP to any host: blocks go from the owner's memory into the socket, and out of it into ours.

Needs nothing but sockets; with the native library the bulk moves without the interpreter's lock.
With the control connection's TLS the data is encrypted as well, at a fraction of the speed. Sends
host memory and files, receives into host memory. Without `verify`, the bytes are protected by TCP's
own checksum alone.
"""

import logging
import socket
import threading

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.strict import whole
from stafette.kvtransfer.transport import (
    Capabilities,
    Link,
    PeerControl,
    PeerInfo,
    Surroundings,
    Transport,
)
from stafette.kvtransfer.transports.tcp_config import TcpConfig
from stafette.kvtransfer.transports.tcp_counters import TcpCounters, TcpTally
from stafette.kvtransfer.transports.tcp_link import TcpLink
from stafette.kvtransfer.transports.tcp_owner import OwnerEnd
from stafette.kvtransfer.transports.tcp_tasks import SOURCES
from stafette.kvtransfer.transports.tcp_way import Way
from stafette.kvtransfer.transports.tcp_wire import Wire, wire_of

_log = logging.getLogger(__name__)

VERSION = 1
_MOST_REQUESTS = 1 << 16
_CLOSE_S = 5.0


class TcpTransport(Transport):
    """One agent's end: serves what peers ask on connections that they dial, and dials theirs."""

    name = "tcp"
    capabilities = Capabilities(
        reads_from=SOURCES,
        reads_into=frozenset({"host"}),
        same_host=False,
        setup_us=100.0,
        gb_per_s=2.5,
    )

    def __init__(self, surroundings: Surroundings, config: TcpConfig | None = None) -> None:
        self._ours = surroundings
        self._config = config or TcpConfig()
        self._tally = TcpTally()
        self._links: set[TcpLink] = set()
        self._wires: set[Wire] = set()  # that peers dialled
        self._closed = False
        self._changed = threading.Condition()

    def endpoint(self) -> object:
        return [VERSION, self._config.max_requests]

    def attach(self, region: LocalRegion) -> object:
        return None

    def detach(self, region: LocalRegion) -> None:
        return

    def unreachable(self, peer: PeerInfo, remote: RegionInfo, local: LocalRegion) -> str:
        try:
            _max_requests(peer)
        except MalformedMessage as error:
            return f"the peer does not offer it ({error})"
        if remote.kind not in self.capabilities.reads_from:
            return f"it does not read {remote.kind} memory"
        if local.info.kind not in self.capabilities.reads_into:
            return f"it does not read into {local.info.kind} memory"
        return ""

    def connect(self, peer: PeerInfo, control: PeerControl) -> Link:
        max_requests = min(self._config.max_requests, _max_requests(peer))
        way = Way(peer.name, control, self._config, self._tally, max_requests)
        link = TcpLink(way, self._forget)
        with self._changed:
            if not self._closed:
                self._links.add(link)
                return link
        link.close()
        return link

    def accept(self, connection: socket.socket, peer: PeerInfo) -> None:
        """Serve the peer until the connection ends."""
        wire = wire_of(connection, self._config.native)
        if not self._enter(wire, peer):
            wire.close()
            return
        try:
            OwnerEnd(wire, peer, self._ours, self._config, self._tally).run()
        except TimeoutError as error:
            self._tally.count("stalled")
            _log.warning("closed the connection of %s: %s", peer.name, error)
        except MalformedMessage as error:
            self._tally.count("malformed")
            _log.warning("closed the connection of %s: %s", peer.name, error)
        except OSError as error:
            _log.info("the connection of %s broke: %s", peer.name, error)
        finally:
            wire.close()
            self._leave(wire)

    def counters(self) -> TcpCounters:
        return self._tally.read()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            links = list(self._links)
            for wire in self._wires:
                wire.shutdown()
        for link in links:
            link.close()
        with self._changed:
            if not self._changed.wait_for(lambda: not self._wires, _CLOSE_S):
                _log.error("%d connections of peers are still served", len(self._wires))

    def _enter(self, wire: Wire, peer: PeerInfo) -> bool:
        with self._changed:
            full = len(self._wires) >= self._config.max_connections
            if full:
                _log.warning("refused a connection of %s: there are too many", peer.name)
            if full or self._closed:
                return False
            self._wires.add(wire)
        self._tally.count("connections")
        return True

    def _leave(self, wire: Wire) -> None:
        with self._changed:
            self._wires.discard(wire)
            self._changed.notify_all()

    def _forget(self, link: TcpLink) -> None:
        with self._changed:
            self._links.discard(link)


def _max_requests(peer: PeerInfo) -> int:
    """Read the peer's endpoint: how many requests it takes at once on a connection."""
    match peer.endpoints.get("tcp"):
        case [version, max_requests]:
            if version != VERSION:
                raise MalformedMessage("tcp version", f"{VERSION}, not {version!r}")
            return max(1, whole(max_requests, "tcp requests", _MOST_REQUESTS))
    raise MalformedMessage("tcp endpoint", "[version, requests]")
