"""The owner's side of the transports of one host, where a lease is seen in the owner's ledger.

The owner answers once for each region: a peer that holds a lease on it gets what it takes to read,
and the descriptors of the ledger and of the region's counts. From then on the peer reads by itself,
whatever the owner's threads do, and looks at the ledger before and after every copy.
"""

import os
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from stafette.kvtransfer.control.host import host_id
from stafette.kvtransfer.control.serving import SlowOperation
from stafette.kvtransfer.errors import AccessDenied, MalformedMessage
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.strict import whole
from stafette.kvtransfer.transport import (
    Claim,
    Handover,
    Link,
    Operation,
    PeerControl,
    PeerInfo,
    Surroundings,
    Transport,
)
from stafette.kvtransfer.transports.same_host.config import SameHostConfig
from stafette.kvtransfer.transports.same_host.digests import digest
from stafette.kvtransfer.transports.same_host.link import SameHostLink
from stafette.kvtransfer.transports.same_host.opened import Opened
from stafette.kvtransfer.transports.same_host.truth import Truth

_VERSION = 1  # of the hints, and of what the operations say
_U63_END = 1 << 63


@dataclass(frozen=True, slots=True)
class Shown:
    """What a peer gets of a region: a number that its transport knows how to use, and files."""

    place: int
    fds: Sequence[int]  # ours


class SameHostTransport(Transport):
    """What a subclass adds: which regions it shows, and how they are opened at the other side."""

    def __init__(self, surroundings: Surroundings, config: SameHostConfig) -> None:
        self._around = surroundings
        self._config = config
        self._shown: dict[tuple[str, int], Shown] = {}
        self._links: set[SameHostLink] = set()
        self._lock = threading.Lock()

    @abstractmethod
    def _show(self, region: LocalRegion) -> Shown | None:
        """Return what a peer needs beside the ledger; None when it cannot be shown."""

    @abstractmethod
    def _opened(self, peer: PeerInfo, info: RegionInfo, truth: Truth, shown: Shown) -> Opened:
        """Open what a peer showed. Its files are closed afterwards."""

    @abstractmethod
    def _not_shown(self, peer: PeerInfo, remote: RegionInfo) -> str:
        """Return why the peer does not show a region."""

    def _why_not(self, peer: PeerInfo) -> str:
        """Return what else speaks against reading from a peer that shows its region."""
        return ""

    def attach(self, region: LocalRegion) -> object:
        shown = self._show(region)
        if shown is None:
            return None
        ledger = self._around.ledger
        counts = os.dup(ledger.generations_memory(region.name).fd)
        with self._lock:
            fds = counts, os.dup(ledger.memory.fd), *shown.fds
            self._shown[_key(region.info)] = Shown(shown.place, fds)
        return _VERSION

    def detach(self, region: LocalRegion) -> None:
        with self._lock:
            shown = self._shown.pop(_key(region.info), None)
            if shown is not None:
                _close_all(shown.fds)

    def unreachable(self, peer: PeerInfo, remote: RegionInfo, local: LocalRegion) -> str:
        if peer.host_id != host_id():
            return "it runs on another host"
        if remote.kind not in self.capabilities.reads_from:
            return f"region {remote.name} is {remote.kind} memory"
        if local.info.kind not in self.capabilities.reads_into:
            return f"our region {local.name} is {local.info.kind} memory"
        hint = remote.hints.get(self.name)
        if hint is None:
            return self._not_shown(peer, remote)
        if hint != _VERSION:
            return f"it shows region {remote.name} in version {hint}, we know {_VERSION}"
        return self._why_not(peer)

    def connect(self, peer: PeerInfo, control: PeerControl) -> Link:
        link = SameHostLink(self.name, peer, control, self._open, self._config)
        with self._lock:
            self._links = {each for each in self._links if not each.closed} | {link}
        return link

    def operations(self) -> Mapping[str, Operation]:
        return {
            f"{self.name}.open": self._answer_open,
            f"{self.name}.why": self._answer_why,
            f"{self.name}.digest": SlowOperation(self._answer_digest),
        }

    def close(self) -> None:
        with self._lock:
            links, self._links = self._links, set()
            shown, self._shown = self._shown, {}
        for link in links:
            link.close()
        for each in shown.values():
            _close_all(each.fds)

    def _open(self, peer: PeerInfo, info: RegionInfo, answer: object, fds: list[int]) -> Opened:
        """Open a region with what its owner has answered."""
        match answer, fds:
            case [place, ledger_bytes], [counts, ledger, *others]:
                size = whole(ledger_bytes, "ledger bytes", _U63_END)
                truth = Truth(ledger, size, counts, info.num_blocks)
                shown = Shown(whole(place, "place", _U63_END), others)
                return self._opened(peer, info, truth, shown)
        raise MalformedMessage("opened region", "[place, ledger bytes] and at least two files")

    def _answer_open(self, peer: PeerInfo, payload: object) -> object:
        with self._claim(peer, payload) as claim, self._lock:
            shown = self._shown.get(_key(claim.region.info))
            if shown is None:
                asked = f"region {claim.region.name}"
                raise AccessDenied(self._around.name, asked, f"{self.name} cannot read it")
            answer = [shown.place, self._around.ledger.memory.nbytes]
            return Handover(answer, [os.dup(fd) for fd in shown.fds])

    def _answer_why(self, peer: PeerInfo, payload: object) -> object:
        """Raise what is wrong with a lease that a peer found struck out."""
        with self._claim(peer, payload):
            return None

    def _answer_digest(self, peer: PeerInfo, payload: object) -> object:
        extents = _asked(payload)[1]
        with self._claim(peer, payload) as claim:
            found = digest(claim.region, extents)
            claim.check()
        return found

    def _claim(self, peer: PeerInfo, payload: object) -> AbstractContextManager[Claim]:
        lease_id, extents = _asked(payload)
        return self._around.gate.claim(peer.name, lease_id, extents)


def _asked(payload: object) -> tuple[int, Extents]:
    match payload:
        case [lease_id, extents]:
            return whole(lease_id, "lease id", _U63_END), Extents.read(extents)
    raise MalformedMessage("question", "[lease id, extents]")


def _key(info: RegionInfo) -> tuple[str, int]:
    return info.name, info.generation


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
