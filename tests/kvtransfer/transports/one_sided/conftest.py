"""A NIXL whose transfers a test lets land, and agents of two lives around it."""

import ctypes
import itertools
import threading

import numpy as np
import pytest

from stafette.kvtransfer.buffers import Shape, region_of
from stafette.kvtransfer.transports.one_sided.nixl_agent import Agent, Flight, NixlFailed


class FakeNixl:
    """What connects the agents of a test: their names, what they have registered, their reads."""

    def __init__(self) -> None:
        self.agents: dict[str, FakeAgent] = {}
        self.flights: list[FakeFlight] = []
        self.land_at_once = True
        self.refuses = ""  # a call that fails
        self.spoils = False  # changes a byte of each read

    def make_agent(self, name: str) -> "FakeAgent":
        self.agents[name] = FakeAgent(self, name)
        return self.agents[name]

    def called(self, call: str) -> None:
        if self.refuses == call:
            raise NixlFailed(f"NIXL: {call}: refused")


class FakeAgent(Agent):
    def __init__(self, nixl: FakeNixl, name: str) -> None:
        nixl.called("start")
        self.nixl = nixl
        self.name = name
        self.registered: dict[int, tuple[int, int]] = {}
        self.known: dict[str, set[tuple[int, int]]] = {}
        self.destroyed = False
        self.refuses = ""  # a call of this one alone
        self.holds_on = False  # something keeps it alive: destroying it is no fence
        self._numbers = itertools.count()

    def register(self, region):
        self.nixl.called("register")
        if self.refuses == "register":
            raise NixlFailed("NIXL: registering: refused")
        number = next(self._numbers)
        self.registered[number] = region.address, region.address + region.info.nbytes
        return number

    def deregister(self, registered):
        self.nixl.called("deregister")
        del self.registered[registered]

    def metadata(self):
        spans = ",".join(f"{a}-{b}" for a, b in self.registered.values())
        return f"{self.name}|{spans}".encode()

    def add_peer(self, metadata):
        self.nixl.called("add_peer")
        name, _, spans = metadata.decode().partition("|")
        pairs = [span.split("-") for span in spans.split(",") if span]
        self.known.setdefault(name, set()).update((int(a), int(b)) for a, b in pairs)
        return name

    def read(self, peer, into, source):
        self.nixl.called("read")
        assert not self.destroyed
        for address, length, _ in source.table.tolist():
            if not any(a <= address and address + length <= b for a, b in self.known[peer]):
                raise NixlFailed("NIXL: reading: nixlNotFoundError")
        for address, length, _ in into.table.tolist():
            spans = self.registered.values()
            assert any(a <= address and address + length <= b for a, b in spans)
        flight = FakeFlight(self, into.table.tolist(), source.table.tolist())
        self.nixl.flights.append(flight)
        if self.nixl.land_at_once:
            flight.land()
        return flight

    def destroy(self):
        self.destroyed = True
        return not self.holds_on


class FakeFlight(Flight):
    def __init__(self, agent, into, source) -> None:
        self.agent, self.into, self.source = agent, into, source
        self.nbytes = sum(length for _, length, _ in into)
        self.here = threading.Event()

    def landed(self):
        assert not self.agent.destroyed
        return self.here.is_set()

    def land(self):
        for (to, length, _), (origin, _, _) in zip(self.into, self.source, strict=True):
            view(to, length)[:] = view(origin, length)
            if self.agent.nixl.spoils:
                view(to, length)[0] ^= 1
        self.here.set()

    def fail(self, error: str, disconnected: bool = True):
        self.error = NixlFailed(error, disconnected)
        self.here.set()


def view(address: int, length: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(address))


@pytest.fixture
def nixl() -> FakeNixl:
    return FakeNixl()


@pytest.fixture
def make_region():
    def make(nbytes: int = 4096, name: str = "pool"):
        return region_of(np.zeros(nbytes, np.uint8), Shape(name, 0, 1))

    return make
