"""What is made of NIXL's own interface: its errors, its states, and the end of an agent."""

import logging
import sys
import types

import numpy as np
import pytest

from stafette.kvtransfer.buffers import Shape, region_of
from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.transports.cuts import Cuts
from stafette.kvtransfer.transports.one_sided import nixl_agent
from stafette.kvtransfer.transports.one_sided.nixl_agent import NixlAgent, Spans


def nixl_error(name: str) -> type[Exception]:
    return type(name, (Exception,), {"__module__": "nixl_cu12._bindings"})


NotFound = nixl_error("nixlNotFoundError")
Disconnected = nixl_error("nixlRemoteDisconnectError")
RepostActive = nixl_error("nixlRepostActiveError")


class Inner:
    """The part of an agent that is C++."""


class Handle:
    def __init__(self, agent) -> None:
        self.agent = agent  # as NIXL's own do


class FakeApi:
    """The names that we use of nixl._api, for an agent whose answers a test gives."""

    nixl_thread_sync_t = types.SimpleNamespace(NIXL_THREAD_SYNC_STRICT="strict")

    def __init__(self) -> None:
        self.states = []  # what transfer and check_xfer_state answer, or raise
        self.releases = []
        self.made = []

    def nixl_agent_config(self, **options):
        return options

    def nixl_agent(self, name, config):
        api = self

        class Agent:
            agent = Inner()

            def register_memory(self, rows, segment):
                api.made.append((rows, segment))
                return "registered"

            def get_xfer_descs(self, table, segment):
                return table.tolist(), segment

            def initialize_xfer(self, operation, ours, theirs, peer):
                return Handle(self.agent)

            def transfer(self, handle):
                return api.next(api.states)

            check_xfer_state = transfer

            def release_xfer_handle(self, handle):
                api.next(api.releases, "ok")

            def add_remote_agent(self, metadata):
                return b"theirs"

        self.options = config
        agent = Agent()
        agent.agent = Inner()
        return agent

    @staticmethod
    def next(answers, otherwise=None):
        answer = answers.pop(0) if answers else otherwise
        if isinstance(answer, type):
            raise answer("NIXL_ERR")
        assert answer is not None
        return answer


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def agent(api) -> NixlAgent:
    return NixlAgent(api, "reader", num_threads=3)


def spans() -> Spans:
    part = Cuts(Extents.of("pool", [(0, 8), (100, 2)]), 64)[0]
    return Spans.of("host", 0, 1_000, part)


def test_ranges_become_rows_of_address_length_and_device():
    part = Cuts(Extents.of("pool", [(0, 8), (100, 2)]), 64)[0]

    found = Spans.of("cuda", 3, 2**63, part)

    assert found.segment == "VRAM"
    assert found.table.tolist() == [[2**63, 8, 3], [2**63 + 100, 2, 3]]


def test_agent_uses_ucx_and_may_be_called_by_any_thread(agent, api):
    assert api.options == {"backends": ["UCX"], "sync_mode": "strict", "num_threads": 3}


def test_region_is_registered_where_it_lies(agent, api):
    region = region_of(np.zeros(64, np.uint8), Shape("pool", 0, 1))

    assert agent.register(region) == "registered"
    assert api.made == [([(region.address, 64, 0, "")], "DRAM")]


def test_flight_lands_when_nixl_says_done_and_lets_go_of_it(agent, api):
    api.states = ["PROC", "PROC", "DONE"]

    flight = agent.read("theirs", spans(), spans())

    assert flight.nbytes == 10
    assert not flight.landed()
    assert flight.landed()
    assert flight.landed()
    assert flight.error is None
    assert not agent.flights


@pytest.mark.parametrize("states", [["PROC", Disconnected], [Disconnected]])
def test_flight_that_lost_its_peer_lands_with_an_error(agent, api, states):
    api.states = states

    flight = agent.read("theirs", spans(), spans())

    assert flight.landed()
    assert flight.error.disconnected
    assert "nixlRemoteDisconnectError" in str(flight.error)


def test_flight_that_failed_has_not_landed_before_nixl_lets_go_of_it(agent, api):
    api.states = ["ERR"]
    api.releases = [RepostActive, RepostActive]

    flight = agent.read("theirs", spans(), spans())

    assert not flight.landed()
    assert not flight.landed()
    assert flight.landed()
    assert not flight.error.disconnected


def test_errors_of_others_are_not_taken_for_nixls(agent, api):
    api.states = [ZeroDivisionError]

    with pytest.raises(ZeroDivisionError):
        agent.read("theirs", spans(), spans())


def test_destroyed_agent_lets_go_of_flights_under_way(agent, api):
    api.states = ["PROC"]
    api.releases = [NotFound]
    flight = agent.read("theirs", spans(), spans())

    assert agent.destroy()

    assert flight.landed()
    assert "destroyed" in str(flight.error)
    assert agent.destroy()


def test_agent_that_something_holds_is_not_gone(agent, caplog):
    held = agent._agent.agent

    assert not agent.destroy()

    assert "still lives" in caplog.text
    assert held is not None


def test_first_module_that_is_there_is_nixl(monkeypatch):
    for name in ("nixl", "nixl._api", "nixl_cu13", "nixl_cu13._api"):
        monkeypatch.setitem(sys.modules, name, None)
    package = types.ModuleType("nixl_cu12")
    package._api = types.ModuleType("nixl_cu12._api")
    package._api.nixl_thread_sync_t = None
    monkeypatch.setitem(sys.modules, "nixl_cu12", package)
    monkeypatch.setitem(sys.modules, "nixl_cu12._api", package._api)

    assert nixl_agent.load() is package._api


def test_without_nixl_the_remedy_is_told(monkeypatch):
    for name in ("nixl", "nixl_cu13", "nixl_cu12"):
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(InvalidValue, match="pip install --no-deps nixl-cu12"):
        nixl_agent.load()


def test_nixl_that_is_too_old_is_told(monkeypatch):
    monkeypatch.setattr(nixl_agent, "import_module", types.ModuleType)

    with pytest.raises(InvalidValue, match="too old"):
        nixl_agent.load()


def test_log_of_nixl_goes_where_all_logs_go(monkeypatch, capsys, caplog):
    """Its import sends it to stdout, where a program's answers may be."""

    def import_as_nixl(name):
        logging.raiseExceptions = False
        logger.addHandler(logging.StreamHandler(sys.stdout))
        logger.propagate = False
        logger.setLevel(logging.INFO)
        return types.SimpleNamespace(nixl_thread_sync_t=None)

    logger = logging.getLogger("nixl")
    monkeypatch.setattr(nixl_agent, "import_module", import_as_nixl)

    nixl_agent.load()
    logging.getLogger("nixl.x").info("started")
    logging.getLogger("nixl.x").warning("trouble")

    assert capsys.readouterr().out == ""
    assert [record.message for record in caplog.records] == ["trouble"]
    assert logging.raiseExceptions
    logger.setLevel(logging.NOTSET)
