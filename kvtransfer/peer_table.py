"""The peers that an agent knows: one life of each, and how it is told from the one before."""

import logging
import threading
from collections.abc import Callable

from stafette.kvtransfer.errors import InvalidValue, PeerLost, StaleEpoch
from stafette.kvtransfer.metadata import Metadata
from stafette.kvtransfer.peers import Peer
from stafette.kvtransfer.transport import PeerInfo

_log = logging.getLogger(__name__)


class PeerTable:
    """`make` makes a peer; `on_gone` hears of every life that is over, with the reason."""

    def __init__(
        self, make: Callable[[PeerInfo], Peer], on_gone: Callable[[str, str], None]
    ) -> None:
        self._make = make
        self._on_gone = on_gone
        self.on_lost: list[Callable[[str, bool], None]] = []
        self._peers: dict[str, Peer] = {}
        self._closed = False
        self._lock = threading.Lock()

    def add(self, metadata: Metadata) -> str:
        """Take in a peer; a newer life replaces an older one, whose transfers end."""
        info = metadata.peer
        with self._lock:
            if self._closed:
                raise InvalidValue("agent", "closed", "make a new one")
            known = self._peers.get(info.name)
            if known is not None and known.info.epoch == info.epoch:
                return info.name
            if known is not None and known.info.epoch > info.epoch:
                raise StaleEpoch(info.name, info.epoch, known.info.epoch)
            self._peers[info.name] = self._make(info)
        if known is not None:
            _log.info("peer %s has restarted", info.name)
            self._end(known, "it has restarted")
        return info.name

    def get(self, name: str) -> Peer:
        peer = self._peers.get(name)
        if peer is None:
            known = ", ".join(sorted(self._peers)) or "none"
            raise InvalidValue("peer", name, f"add its metadata first; known are: {known}")
        return peer

    def life(self, name: str, epoch: int) -> Peer:
        """Return a peer, which must live in that epoch."""
        peer = self.get(name)
        if peer.info.epoch != epoch:
            raise StaleEpoch(name, epoch, peer.info.epoch)
        return peer

    def names(self) -> list[str]:
        return sorted(self._peers)

    def all(self) -> list[Peer]:
        with self._lock:
            return list(self._peers.values())

    def remove(self, name: str) -> None:
        with self._lock:
            peer = self._peers.pop(name, None)
        if peer is not None:
            self._end(peer, "it was removed here")

    def lost(self, info: PeerInfo) -> None:
        """The connection broke: end what is under way. The peer may still come back."""
        peer = self._peers.get(info.name)
        if peer is not None and peer.info.epoch == info.epoch:
            peer.drop_links()
            self._tell_lost(info.name, False)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            peers, self._peers = self._peers, {}
        for peer in peers.values():
            self._end(peer, "this agent was closed")

    def _end(self, peer: Peer, reason: str) -> None:
        peer.close()
        self._on_gone(peer.info.name, str(PeerLost(peer.info.name, reason)))
        self._tell_lost(peer.info.name, True)

    def _tell_lost(self, name: str, for_good: bool) -> None:
        for call in tuple(self.on_lost):
            call(name, for_good)
