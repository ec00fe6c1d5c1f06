"""The agents that read: one at a time, a new one when the last one had to be given up."""

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stafette.kvtransfer.errors import PeerLost
from stafette.kvtransfer.regions import LocalRegion
from stafette.kvtransfer.transport import PeerInfo
from stafette.kvtransfer.transports.one_sided.nixl_agent import Agent, NixlFailed

_log = logging.getLogger(__name__)


class Engine:
    """An agent, what it has registered, and the peers that it knows."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.users = 0
        self.retired = False
        self.destroyed = False
        self.gone = False  # nothing that it read lands any more
        self._registered: dict[str, object] = {}
        self._known: dict[tuple[str, int], tuple[int, str]] = {}
        self._lock = threading.Lock()

    def attach(self, region: LocalRegion) -> None:
        self._registered[region.name] = self.agent.register(region)

    def detach(self, region: LocalRegion) -> None:
        registered = self._registered.pop(region.name, None)
        if registered is not None:
            deregister(self.agent, registered, region.name)

    def know(self, peer: PeerInfo, serial: int, fetch: Callable[[], bytes]) -> str:
        """Return the name of the peer's agent, whose registrations have that serial number."""
        key = peer.name, peer.epoch
        with self._lock:
            known = self._known.get(key)
        if known is None or known[0] != serial:
            known = serial, self.agent.add_peer(fetch())
            with self._lock:
                self._known[key] = known
        return known[1]


def deregister(agent: Agent, registered: object, name: str) -> None:
    """Deregister a region that nobody uses any more. Whoever does that goes on in any case."""
    try:
        agent.deregister(registered)
    except NixlFailed as error:
        _log.error("region %s stays registered with NIXL: %s", name, error)


class Engines:
    def __init__(self, name: str, make_agent: Callable[[str], Agent]) -> None:
        self._name = name
        self._make_agent = make_agent
        self._numbers = itertools.count(1)
        self._regions: dict[str, LocalRegion] = {}
        self._living: list[Engine] = []  # the last one is in use, unless it is retired
        self._closed = False
        self._lock = threading.RLock()

    def look(self, is_over: Callable[[], bool]) -> bool:
        """Ask that while no engine is destroyed."""
        with self._lock:
            return is_over()

    def attach(self, region: LocalRegion) -> None:
        """Register it with every agent, or with none."""
        with self._lock:
            self._regions[region.name] = region
            try:
                for engine in self._living:
                    engine.attach(region)
            except BaseException:
                self.detach(region)
                raise

    def detach(self, region: LocalRegion) -> None:
        with self._lock:
            self._regions.pop(region.name, None)
            for engine in self._living:
                engine.detach(region)

    @contextmanager
    def use(self) -> Iterator[Engine]:
        """Lend the engine of the moment."""
        with self._lock:
            engine = self._current()
            engine.users += 1
        try:
            yield engine
        finally:
            with self._lock:
                engine.users -= 1
                self._sweep()

    def retire(self, engine: Engine) -> None:
        """Use it no more, and destroy it when nobody does."""
        with self._lock:
            engine.retired = True
            self._sweep()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for engine in list(self._living):
                self.retire(engine)

    def _current(self) -> Engine:
        if self._closed:
            raise PeerLost(self._name, "the transport was closed")
        if not self._living or self._living[-1].retired:
            self._living.append(self._new())
        return self._living[-1]

    def _new(self) -> Engine:
        engine = Engine(self._make_agent(f"{self._name}/{next(self._numbers)}"))
        try:
            for region in self._regions.values():
                engine.attach(region)
        except BaseException:
            engine.agent.destroy()
            raise
        return engine

    def _sweep(self) -> None:
        for engine in [each for each in self._living if each.retired and not each.users]:
            engine.destroyed = True
            engine.gone = engine.agent.destroy()
            self._living.remove(engine)
