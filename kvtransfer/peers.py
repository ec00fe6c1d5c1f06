"""A peer as an agent sees it: the connection to it, and the ways on which its bytes come."""

import threading
from collections.abc import Callable, Mapping

from stafette.kvtransfer.control.client import ControlClient
from stafette.kvtransfer.errors import TransportUnavailable
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.routes import BreakerConfig, Route, RouteView, quickest
from stafette.kvtransfer.transport import Link, PeerInfo, Transport


class Peer:
    """One life of a peer. Links are made when the first transfer takes them."""

    def __init__(
        self,
        info: PeerInfo,
        control: ControlClient,
        transports: Mapping[str, Transport],
        breaker: BreakerConfig,
        clock: Callable[[], float],
    ) -> None:
        self.info = info
        self.control = control
        self._transports = transports
        self._clock = clock
        self._links: dict[str, Link] = {}
        self._lock = threading.Lock()
        self._routes = {
            name: Route(
                name, transport.capabilities.setup_us, transport.capabilities.gb_per_s, breaker
            )
            for name, transport in transports.items()
        }

    def route(
        self,
        remote: RegionInfo,
        local: LocalRegion,
        nbytes: int,
        allowed: Callable[[str], bool],
    ) -> Route:
        """Return the quickest way that is open; an error tells what is wrong with each."""
        reasons, open_routes = [], []
        for name, transport in self._transports.items():
            if not allowed(name):
                continue
            reason = transport.unreachable(self.info, remote, local)
            if reason:
                reasons.append(f"{name}: {reason}")
            else:
                open_routes.append(self._routes[name])
        now = self._clock()
        found = quickest(open_routes, nbytes, now)
        if found is not None:
            return found
        resting = [f"{r.transport}: rests {r.rests_s(now):.1f} s" for r in open_routes]
        told = "; ".join([*reasons, *resting]) or "no other transport is left"
        names = ", ".join(filter(allowed, self._transports)) or "any"
        raise TransportUnavailable(names, self.info.name, told)

    def link(self, transport: str) -> Link:
        with self._lock:
            link = self._links.get(transport)
            if link is None:
                link = self._transports[transport].connect(self.info, self.control)
                self._links[transport] = link
        return link

    def known_link(self, transport: str) -> Link | None:
        """Return the link, if something was transferred on it before."""
        return self._links.get(transport)

    def routes(self) -> dict[str, RouteView]:
        now = self._clock()
        return {name: route.view(now) for name, route in self._routes.items()}

    def drop_links(self) -> None:
        """End what is under way: the peer is gone, or comes back as another."""
        with self._lock:
            links, self._links = self._links, {}
        for link in links.values():
            link.close()

    def close(self) -> None:
        self.drop_links()
        self.control.close()
