"""The transport of NIXL: its UCX backend reads from the peer's memory, by RDMA where there is any.

What NIXL lacks is put around it. The owner checks region, bounds and lease before a read and again
after it (see `visits`), since NIXL delivers new content under old metadata. A deadline or a cancel
ends the job at once; its destination is not given back before NIXL says that the read is over, or
the agent that reads was destroyed: nothing less is a fence (see `one_sided.nixl_agent`). Metadata
travels as NIXL's own bytes on the visit, never as a pickle.

What it does not change: NIXL authenticates nobody, so who can reach its sockets and knows the keys
in the metadata reads whatever is registered. And over plain TCP UCX 1.23 ends the *owner's* process
when it serves a read whose reader has died (15 of 15 tries with an owner that stood still): so a
peer on another host is read only where there is RDMA, unless `allow_tcp` is set.

Needs the wheel nixl-cu12 or nixl-cu13, and neither CUDA nor torch for host memory. Tried with 1.5.1
on one host, by CMA and by TCP; memory of GPUs (VRAM) and RDMA were not.
"""

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stafette.kvtransfer.control.host import host_id
from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.regions import LocalRegion, RegionInfo, RegionKind
from stafette.kvtransfer.transport import (
    Capabilities,
    Link,
    PeerControl,
    PeerInfo,
    Surroundings,
    Transport,
)
from stafette.kvtransfer.transports.one_sided.engines import Engines, deregister
from stafette.kvtransfer.transports.one_sided.fetcher import NAME, Fetcher, Limits
from stafette.kvtransfer.transports.one_sided.host import NixlHost
from stafette.kvtransfer.transports.one_sided.nixl_agent import Agent, NixlAgent, NixlFailed, load
from stafette.kvtransfer.transports.one_sided.orphans import Orphans
from stafette.kvtransfer.transports.visits.lanes import LaneLink, Links, Worker
from stafette.kvtransfer.transports.visits.reception import Reception, Visitor

_KINDS: frozenset[RegionKind] = frozenset({"host", "cuda"})
_RDMA_DEVICES = Path("/sys/class/infiniband")  # EFA's are there too
_VERSION = 1  # of what is said on a visit


@dataclass(frozen=True, slots=True, kw_only=True)
class NixlConfig:
    lanes: int = 2  # jobs side by side with one peer, each with a thread
    part_bytes: int = 16 << 20  # of one transfer of NIXL; a cancel waits for those under way
    depth: int = 2  # such transfers under way of one job
    poll_s: float = 50e-6
    num_threads: int = 0  # of NIXL's UCX backend; 0: its default
    allow_tcp: bool = False  # read from other hosts without RDMA, for what it costs: see above
    grace_s: float = 1.0  # for NIXL to notice that a peer is lost, before its agent is replaced
    dial_timeout_s: float = 5.0
    close_timeout_s: float = 10.0
    max_visits: int = 256  # of all peers together, each with a thread

    def __post_init__(self) -> None:
        for name in ("lanes", "depth", "max_visits"):
            if getattr(self, name) < 1:
                raise InvalidValue(f"nixl.{name}", getattr(self, name), "must be at least 1")
        for name in ("poll_s", "dial_timeout_s", "close_timeout_s"):
            if not getattr(self, name) > 0:
                raise InvalidValue(f"nixl.{name}", getattr(self, name), "must be above 0")
        for name in ("num_threads", "grace_s"):
            if not getattr(self, name) >= 0:
                raise InvalidValue(f"nixl.{name}", getattr(self, name), "must be at least 0")
        if self.part_bytes < 4 << 10:
            raise InvalidValue("nixl.part_bytes", self.part_bytes, "must be at least 4096")


class NixlTransport(Transport):
    name = NAME
    # As on one host by CMA, large blocks; RDMA is quicker, and is soon measured.
    capabilities = Capabilities(_KINDS, _KINDS, same_host=False, setup_us=400.0, gb_per_s=4.0)

    def __init__(
        self,
        surroundings: Surroundings,
        config: NixlConfig = NixlConfig(),
        make_agent: Callable[[str], Agent] | None = None,
    ) -> None:
        self._config = config
        make_agent = _maker(config) if make_agent is None else make_agent
        life = f"{surroundings.name}@{surroundings.epoch:x}"
        self._offered = _Offered(make_agent(life))
        self._engines = Engines(life, make_agent)
        self._orphans = Orphans(self._engines, config.grace_s)
        self._links = Links()
        gate, most = surroundings.gate, config.max_visits
        self._reception = Reception(self.name, gate, self._make_host, most)

    def endpoint(self) -> object:
        return _VERSION

    def attach(self, region: LocalRegion) -> object:
        """Register it; peers need its address. InvalidValue where NIXL refuses."""
        if region.info.kind not in _KINDS:
            return None
        try:
            self._offered.attach(region)
            self._engines.attach(region)
        except NixlFailed as error:
            self._offered.detach(region)
            raise InvalidValue("region", region.name, str(error)) from error
        return region.address

    def detach(self, region: LocalRegion) -> None:
        if region.info.kind in _KINDS:
            self._offered.detach(region)
            self._engines.detach(region)

    def unreachable(self, peer: PeerInfo, remote: RegionInfo, local: LocalRegion) -> str:
        if peer.endpoints.get(self.name) != _VERSION:
            return "the peer does not offer it"
        for kind in (remote.kind, local.info.kind):
            if kind not in _KINDS:
                return f"it does not move memory of kind {kind}"
        if type(remote.hints.get(self.name)) is not int:
            return "the peer has not registered this region with it"
        if peer.host_id != host_id() and not self._config.allow_tcp and not _has_rdma():
            return "the peer is on another host, and there is no RDMA: see nixl.allow_tcp"
        return ""

    def connect(self, peer: PeerInfo, control: PeerControl) -> Link:
        config = self._config
        limits = Limits(config.part_bytes, config.depth, config.poll_s, config.dial_timeout_s)

        def make_worker() -> Worker:
            return Fetcher(peer, control, self._engines, self._orphans, limits)

        link = _NixlLink(peer.name, make_worker, config.lanes, self._orphans, control)
        return self._links.add(link)

    def accept(self, connection: socket.socket, peer: PeerInfo) -> None:
        self._reception.receive(connection, peer)

    def close(self) -> None:
        """Destroy NIXL's agents: only then nothing lands any more."""
        self._links.close()
        self._reception.close(self._config.close_timeout_s)
        self._orphans.close(self._config.close_timeout_s)
        self._engines.close()
        self._offered.close()

    def _make_host(self, visitor: Visitor) -> NixlHost:
        return NixlHost(visitor, self._offered)


class _Offered:
    """The agent that has what we offer. Each change of it gets a number."""

    def __init__(self, agent: Agent) -> None:
        self.serial = 0
        self._agent = agent
        self._registered: dict[str, object] = {}
        self._lock = threading.Lock()

    def metadata(self) -> bytes:
        with self._lock:
            return self._agent.metadata()

    def attach(self, region: LocalRegion) -> None:
        with self._lock:
            self._registered[region.name] = self._agent.register(region)
            self.serial += 1

    def detach(self, region: LocalRegion) -> None:
        with self._lock:
            registered = self._registered.pop(region.name, None)
            if registered is not None:
                deregister(self._agent, registered, region.name)
                self.serial += 1

    def close(self) -> None:
        with self._lock:
            self._agent.destroy()


class _NixlLink(LaneLink):
    def __init__(
        self,
        peer: str,
        make_worker: Callable[[], Worker],
        lanes: int,
        orphans: Orphans,
        control: PeerControl,
    ) -> None:
        super().__init__(peer, make_worker, lanes)
        self._orphans = orphans
        self._control = control

    def close(self) -> None:
        super().close()
        self._orphans.abandon(self._control)


def _maker(config: NixlConfig) -> Callable[[str], Agent]:
    api = load()
    return lambda name: NixlAgent(api, name, config.num_threads)


def _has_rdma() -> bool:
    return _RDMA_DEVICES.is_dir() and any(_RDMA_DEVICES.iterdir())
