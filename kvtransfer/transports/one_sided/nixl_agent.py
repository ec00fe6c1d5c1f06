"""NIXL's agent, behind what we need of it.

What NIXL 1.5.1 over UCX does, tried on Linux without RDMA: releasing a transfer under way, removing
its peer and deregistering its memory all succeed, and afterwards its bytes land all the same. Only
when the whole agent was destroyed nothing lands any more. Handles keep an agent alive, so all of
them are known here.
"""

import logging
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.regions import LocalRegion, RegionKind
from stafette.kvtransfer.transports.cuts import Part

_log = logging.getLogger(__name__)

# `nixl` finds out which CUDA there is; the others are where it looks.
_MODULES = ("nixl._api", "nixl_cu13._api", "nixl_cu12._api")
_SEGMENTS: dict[RegionKind, str] = {"host": "DRAM", "cuda": "VRAM"}
_DISCONNECTED = "nixlRemoteDisconnectError"
_MIB = 1 << 20


class NixlFailed(ConnectionError):
    """NIXL says no, or, `disconnected`, that the peer has gone."""

    def __init__(self, shown: str, disconnected: bool = False) -> None:
        super().__init__(shown)
        self.disconnected = disconnected


@dataclass(frozen=True, slots=True)
class Spans:
    """Ranges of memory: rows of address, length and device."""

    segment: str
    table: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, kind: RegionKind, device: int, address: int, part: Part) -> "Spans":
        table = np.empty((len(part.offsets), 3), np.uint64)
        table[:, 0] = part.offsets + np.uint64(address)
        table[:, 1] = part.lengths
        table[:, 2] = device
        return cls(_SEGMENTS[kind], table)


class Flight(ABC):
    """A read that was posted."""

    nbytes: int
    error: NixlFailed | None = None  # when it has landed

    @abstractmethod
    def landed(self) -> bool:
        """Whether it writes no more; ask again until it does not."""


class Agent(ABC):
    """Any thread may call it; a flight is one thread's."""

    @abstractmethod
    def register(self, region: LocalRegion) -> object: ...

    @abstractmethod
    def deregister(self, registered: object) -> None: ...

    @abstractmethod
    def metadata(self) -> bytes:
        """Return what peers' agents must know to read what is registered now."""

    @abstractmethod
    def add_peer(self, metadata: bytes) -> str:
        """Get to know a peer's agent, or what it has registered since; return its name."""

    @abstractmethod
    def read(self, peer: str, into: Spans, source: Spans) -> Flight: ...

    @abstractmethod
    def destroy(self) -> bool:
        """Return whether nothing lands any more. Nobody uses the agent or its flights now."""


class NixlAgent(Agent):
    def __init__(self, api: Any, name: str, num_threads: int) -> None:
        strict = api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        config = api.nixl_agent_config(backends=["UCX"], sync_mode=strict, num_threads=num_threads)
        with _told("starting"):
            self._agent: Any = api.nixl_agent(name, config)
        self.flights: set[_NixlFlight] = set()
        self._lock = threading.Lock()

    def register(self, region: LocalRegion) -> object:
        info = region.info
        row = (region.address, info.nbytes, info.device, "")
        with _told(f"registering {info.name} ({info.nbytes // _MIB} MiB)"):
            return self._agent.register_memory([row], _SEGMENTS[info.kind])

    def deregister(self, registered: object) -> None:
        with _told("deregistering"):
            self._agent.deregister_memory(registered)

    def metadata(self) -> bytes:
        with _told("describing itself"):
            found: bytes = self._agent.get_agent_metadata()
        return found

    def add_peer(self, metadata: bytes) -> str:
        with _told("reading a peer's metadata"):
            name = self._agent.add_remote_agent(metadata)
        return name.decode() if isinstance(name, bytes) else str(name)

    def read(self, peer: str, into: Spans, source: Spans) -> Flight:
        agent = self._agent
        with _told(f"reading from {peer}"):
            ours = agent.get_xfer_descs(into.table, into.segment)
            theirs = agent.get_xfer_descs(source.table, source.segment)
            handle = agent.initialize_xfer("READ", ours, theirs, peer)
        flight = _NixlFlight(self, handle, int(into.table[:, 1].sum()))
        with self._lock:
            self.flights.add(flight)
        flight.post()
        return flight

    def state(self, handle: Any) -> str:
        with _told("reading"):
            state: str = self._agent.check_xfer_state(handle)
        return state

    def post(self, handle: Any) -> str:
        with _told("reading"):
            state: str = self._agent.transfer(handle)
        return state

    def release(self, handle: Any) -> bool:
        """Return False while NIXL has not let go of it."""
        try:
            with _told("releasing"):
                self._agent.release_xfer_handle(handle)
        except NixlFailed:
            return False
        return True

    def forget(self, flight: "_NixlFlight") -> None:
        with self._lock:
            self.flights.discard(flight)

    def destroy(self) -> bool:
        with self._lock:
            flights, self.flights = self.flights, set()
        for flight in flights:
            flight.drop()
        if self._agent is None:
            return True
        inner = weakref.ref(self._agent.agent)
        self._agent.agent = None
        self._agent = None
        if inner() is not None:
            _log.error("NIXL's agent still lives, because something holds it")
        return inner() is None


class _NixlFlight(Flight):
    def __init__(self, agent: NixlAgent, handle: Any, nbytes: int) -> None:
        self.nbytes = nbytes
        self._agent = agent
        self._handle = handle
        self._over = False

    def post(self) -> None:
        """Errors are found when it has landed: who knows what was begun."""
        try:
            self._note(self._agent.post(self._handle))
        except NixlFailed as error:
            self._over, self.error = True, error

    def landed(self) -> bool:
        if self._handle is None:
            return True
        if not self._over:
            try:
                self._note(self._agent.state(self._handle))
            except NixlFailed as error:
                self._over, self.error = True, error
        if self._over and self._agent.release(self._handle):
            self._handle = None
            self._agent.forget(self)
        return self._handle is None

    def drop(self) -> None:
        """The agent is about to be destroyed."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._agent.release(handle)
        self.error = self.error or NixlFailed("NIXL's agent was destroyed")

    def _note(self, state: str) -> None:
        if state == "ERR":
            self.error = NixlFailed("NIXL: reading failed")
        self._over = state != "PROC"


def load() -> Any:
    """Return NIXL's module; InvalidValue where there is none."""
    raising = logging.raiseExceptions
    for name in _MODULES:
        with suppress(ImportError):
            api = import_module(name)
            _keep_off_stdout(raising)
            if not hasattr(api, "nixl_thread_sync_t"):
                raise InvalidValue("transport", "nixl", "this NIXL is too old: 1.5.1 was tried")
            return api
    remedy = "needs NIXL: pip install --no-deps nixl-cu12 (or nixl-cu13), or 'stafette[nixl]'"
    raise InvalidValue("transport", "nixl", remedy)


def _keep_off_stdout(raising: bool) -> None:
    """NIXL's import makes its log go to stdout, and changes how all logs treat errors."""
    logging.raiseExceptions = raising
    logger = logging.getLogger("nixl")
    logger.handlers.clear()
    logger.propagate = True
    if logger.level < logging.WARNING:
        logger.setLevel(logging.WARNING)


@contextmanager
def _told(doing: str) -> Iterator[None]:
    """NIXL's errors have nothing in common but the module that they come from."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("nixl"):
            raise
        name = type(error).__name__
        raise NixlFailed(f"NIXL: {doing}: {name}", name == _DISCONNECTED) from error
