"""Reads by NIXL between two transports of this process, around a NIXL that a test commands."""

import contextlib
import ctypes
import socket
import threading
import time

import numpy as np
import pytest

from stafette.kvtransfer.control.host import host_id
from stafette.kvtransfer.errors import (
    ChecksumMismatch,
    InvalidValue,
    LeaseEnded,
    PeerLost,
    StaleBlocks,
    TransferCancelled,
    TransferTimedOut,
    TransportUnavailable,
)
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.regions import LocalRegion, RegionInfo
from stafette.kvtransfer.transport import Grant, PeerInfo, ReadJob, Surroundings
from stafette.kvtransfer.transports import nixl as nixl_module
from stafette.kvtransfer.transports.nixl import NixlConfig, NixlTransport

PATIENCE_S = 10.0
READER = PeerInfo("reader", 1, host_id())
OWNER = PeerInfo("owner", 1, host_id(), {"nixl": 1})
SIZE = 4096


class FakeGate:
    def __init__(self) -> None:
        self.region = None
        self.held = 0
        self.at_the_end = None

    @contextlib.contextmanager
    def claim(self, peer, lease_id, extents):
        if lease_id != 7:
            raise LeaseEnded(lease_id, "it expired")
        self.held += 1
        try:
            yield self
        finally:
            self.held -= 1

    def check(self):
        if self.at_the_end is not None:
            raise self.at_the_end


class Control:
    def __init__(self, transport) -> None:
        self._transport = transport
        self.threads = []
        self.dialled = 0

    def dial(self, purpose, timeout_s):
        assert purpose == "nixl"
        self.dialled += 1
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        thread = threading.Thread(target=self._transport.accept, args=(theirs, READER))
        thread.start()
        self.threads.append(thread)
        return ours


class Job(ReadJob):
    def __init__(self, house, ranges, lease_id=7, timeout_s=PATIENCE_S, verify=False) -> None:
        self.local = house.into
        self.remote = house.info
        self.into = Extents.of("pool", ranges)
        self.source = Extents.of("theirs", ranges)
        none = np.empty(0, np.int64)
        self.grant = Grant(lease_id, 1, 0, house.info, none, none.astype(np.uint64))
        self.deadline = time.monotonic() + timeout_s
        self.verify = verify
        self.stop = ctypes.c_int32(0)
        self.moved = 0
        self.ends = []
        self.over = threading.Event()

    def advance(self, nbytes):
        self.moved += nbytes

    def finish(self, error=None):
        self.ends.append(error)
        self.over.set()

    def end(self):
        assert self.over.wait(PATIENCE_S)
        assert len(self.ends) == 1
        return self.ends[0]


class House:
    """An owner, a reader, and a link between them."""

    def __init__(self, nixl, make_region, **options) -> None:
        self.nixl = nixl
        self.gate = FakeGate()
        config = NixlConfig(**({"poll_s": 1e-4, "grace_s": 0.05} | options))
        self.owner = self._transport("owner", config)
        self.reader = self._transport("reader", config)
        self.offer(make_region(name="theirs"))
        self.into = make_region()
        self.reader.attach(self.into)
        self.control = Control(self.owner)
        self.link = self.reader.connect(OWNER, self.control)

    def offer(self, region):
        hint = self.owner.attach(region)
        self.theirs = self.gate.region = region
        self.theirs.memory[:] = np.random.default_rng(5).integers(0, 256, SIZE)
        info = region.info
        self.info = RegionInfo(
            info.name, info.kind, info.nbytes, info.block_bytes, 1, hints={"nixl": hint}
        )

    def start(self, ranges=((0, SIZE),), **options) -> Job:
        job = Job(self, ranges, **options)
        self.link.start(job)
        return job

    def stop(self, job) -> None:
        job.stop.value = 1
        self.link.interrupt(job)

    def await_flights(self, count: int):
        deadline = time.monotonic() + PATIENCE_S
        while len(self.nixl.flights) < count:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return self.nixl.flights

    def close(self) -> None:
        self.link.close()
        self.reader.close()
        self.owner.close()
        for thread in self.control.threads:
            thread.join(PATIENCE_S)
        assert self.gate.held == 0

    def _transport(self, name, config):
        surroundings = Surroundings(name, 1, self.gate, None)
        return NixlTransport(surroundings, config, self.nixl.make_agent)


@pytest.fixture
def make_house(nixl, make_region):
    houses = []
    before = set(threading.enumerate())

    def make(**options) -> House:
        houses.append(House(nixl, make_region, **options))
        return houses[-1]

    yield make
    for house in houses:
        house.close()
    assert set(threading.enumerate()) <= before


@pytest.fixture
def house(make_house):
    return make_house()


def test_ranges_arrive_and_nothing_beside_them(house):
    job = house.start([(8, 100), (1000, 7)], verify=True)

    assert job.end() is None
    expected = np.zeros(SIZE, np.uint8)
    for start, length in ((8, 100), (1000, 7)):
        expected[start : start + length] = house.theirs.memory[start : start + length]
    assert np.array_equal(house.into.memory, expected)
    assert job.moved == 107


def test_large_job_goes_in_parts_of_which_some_are_under_way(make_house, nixl, monkeypatch):
    monkeypatch.setattr(NixlConfig, "__post_init__", lambda self: None)
    house = make_house(part_bytes=512, depth=3)
    nixl.land_at_once = False
    job = house.start()

    flights = house.await_flights(3)
    time.sleep(0.02)
    assert [flight.nbytes for flight in flights] == [512] * 3
    assert job.moved == 0
    flights[0].land()
    house.await_flights(4)
    assert job.moved == 512
    nixl.land_at_once = True
    for flight in list(flights):
        flight.land()

    assert job.end() is None
    assert len(nixl.flights) == 8
    assert np.array_equal(house.into.memory, house.theirs.memory)


def test_one_visit_serves_many_jobs_and_fetches_metadata_once(house):
    for _ in range(5):
        assert house.start().end() is None

    assert house.control.dialled == 1


def test_region_that_the_peer_registers_later_is_known_in_time(house, make_region):
    assert house.start().end() is None
    house.owner.detach(house.theirs)
    house.offer(make_region(name="theirs"))

    assert house.start().end() is None

    assert np.array_equal(house.into.memory, house.theirs.memory)


def test_owner_that_refuses_is_told_as_it_says_and_nothing_is_read(house, nixl):
    job = house.start(lease_id=8)

    assert isinstance(job.end(), LeaseEnded)
    assert not nixl.flights
    assert house.start().end() is None
    assert house.control.dialled == 1


def test_content_that_changed_under_the_read_is_not_taken(house):
    house.gate.at_the_end = StaleBlocks("owner", "theirs", (0,))

    assert isinstance(house.start().end(), StaleBlocks)


def test_byte_that_changed_on_the_way_is_noticed_when_asked_for(house, nixl):
    nixl.spoils = True

    assert isinstance(house.start(verify=True).end(), ChecksumMismatch)
    assert house.start().end() is None


def test_owner_holds_the_blocks_as_long_as_nixl_reads(house, nixl):
    nixl.land_at_once = False
    job = house.start()
    (flight,) = house.await_flights(1)

    assert house.gate.held == 1
    flight.land()

    assert job.end() is None
    assert house.gate.held == 0


# A read that ends before its bytes have landed


def test_cancelled_job_is_over_when_nixl_has_landed_and_not_before(house, nixl):
    nixl.land_at_once = False
    job = house.start()
    (flight,) = house.await_flights(1)

    house.stop(job)
    assert not job.over.wait(0.1)  # longer than the grace for a lost peer
    assert not any(agent.destroyed for agent in nixl.agents.values())
    flight.land()

    assert isinstance(job.end(), TransferCancelled)
    nixl.land_at_once = True
    assert house.start().end() is None


def test_other_jobs_go_on_while_one_has_not_landed(house, nixl):
    nixl.land_at_once = False
    stuck = [house.start() for _ in range(2)]
    house.await_flights(2)
    for job in stuck:
        house.stop(job)
    nixl.land_at_once = True

    assert house.start().end() is None

    assert not any(job.over.is_set() for job in stuck)
    for flight in nixl.flights[:2]:
        flight.land()
    assert all(isinstance(job.end(), TransferCancelled) for job in stuck)


def test_job_whose_time_is_over_has_timed_out_when_it_has_landed(house, nixl):
    nixl.land_at_once = False
    job = house.start(timeout_s=0.05)
    (flight,) = house.await_flights(1)

    assert not job.over.wait(0.1)
    flight.land()

    assert isinstance(job.end(), TransferTimedOut)


def test_lost_peer_whose_read_does_not_land_costs_the_agent(house, nixl):
    nixl.land_at_once = False
    job = house.start()
    house.await_flights(1)

    house.link.close()

    assert isinstance(job.end(), PeerLost)
    assert nixl.agents["reader@1/1"].destroyed
    assert not nixl.agents["reader@1"].destroyed  # peers go on to read from us
    nixl.land_at_once = True
    house.link = house.reader.connect(OWNER, house.control)
    assert house.start().end() is None
    assert not nixl.agents["reader@1/2"].destroyed


def test_lost_peer_whose_read_lands_soon_costs_nothing(make_house, nixl):
    house = make_house(grace_s=PATIENCE_S)
    nixl.land_at_once = False
    job = house.start()
    (flight,) = house.await_flights(1)

    house.link.close()
    flight.fail("NIXL: reading: nixlRemoteDisconnectError")

    assert isinstance(job.end(), PeerLost)
    assert not nixl.agents["reader@1/1"].destroyed


def test_read_that_was_left_behind_before_its_peer_was_lost_ends_with_it(house, nixl):
    nixl.land_at_once = False
    job = house.start()
    house.await_flights(1)
    house.stop(job)
    assert not job.over.wait(0.1)

    house.link.close()

    assert isinstance(job.end(), TransferCancelled)


def test_agent_is_not_destroyed_under_a_read_from_another_peer(house, nixl):
    nixl.land_at_once = False
    other = house.reader.connect(PeerInfo("owner", 2, host_id(), {"nixl": 1}), house.control)
    lost = house.start()
    house.await_flights(1)
    living = Job(house, [(0, SIZE)])
    other.start(living)
    house.await_flights(2)

    house.link.close()
    assert not lost.over.wait(0.1)
    nixl.flights[1].land()

    assert living.end() is None
    assert isinstance(lost.end(), PeerLost)
    other.close()


def test_destination_is_never_given_back_when_the_agent_lives_on(house, nixl):
    nixl.land_at_once = False
    job = house.start()
    (flight,) = house.await_flights(1)
    flight.agent.holds_on = True

    house.link.close()

    assert not job.over.wait(0.2)
    assert flight.agent.destroyed
    house.reader.close()
    assert not job.over.is_set()


def test_closed_transport_ends_what_has_not_landed(house, nixl):
    nixl.land_at_once = False
    job = house.start()
    house.await_flights(1)
    house.stop(job)

    house.reader.close()

    assert job.over.is_set()
    assert nixl.agents["reader@1/1"].destroyed
    assert nixl.agents["reader@1"].destroyed


# What NIXL says


def test_what_nixl_refuses_speaks_against_the_way(house, nixl):
    nixl.refuses = "read"

    assert isinstance(house.start().end(), TransportUnavailable)

    nixl.refuses = ""
    assert house.start().end() is None


@pytest.mark.parametrize("call", ["start", "add_peer"])
def test_agent_that_cannot_begin_speaks_against_the_way(house, nixl, call):
    nixl.refuses = call

    assert isinstance(house.start().end(), TransportUnavailable)

    nixl.refuses = ""
    assert house.start().end() is None


@pytest.mark.parametrize(
    ("disconnected", "ended"), [(True, PeerLost), (False, TransportUnavailable)]
)
def test_read_that_breaks_tells_whether_the_peer_is_lost(house, nixl, disconnected, ended):
    nixl.land_at_once = False
    job = house.start()
    (flight,) = house.await_flights(1)

    flight.fail("NIXL: reading: broke", disconnected)

    assert isinstance(job.end(), ended)


def test_region_that_nixl_refuses_is_named(house, nixl, make_region):
    nixl.refuses = "register"

    with pytest.raises(InvalidValue, match="region = 'more'.*refused"):
        house.owner.attach(make_region(name="more"))


def test_region_that_one_agent_refuses_is_registered_with_none(house, nixl, make_region):
    assert house.start().end() is None
    serving, reading = nixl.agents["reader@1"], nixl.agents["reader@1/1"]
    reading.refuses = "register"

    with pytest.raises(InvalidValue, match="region = 'more'"):
        house.reader.attach(make_region(name="more"))

    assert len(serving.registered) == len(reading.registered) == 1
    reading.refuses = ""
    assert house.reader.attach(make_region(name="more"))


def test_region_that_nixl_does_not_let_go_is_forgotten_all_the_same(house, nixl, caplog):
    nixl.refuses = "deregister"

    house.owner.detach(house.theirs)

    assert "region theirs stays registered" in caplog.text
    nixl.refuses = ""
    house.offer(house.theirs)
    assert house.start().end() is None


# Whom it reaches


def region(kind: str) -> LocalRegion:
    return LocalRegion(RegionInfo("pool", kind, 8, 8, 1), None, 0)


def remote(kind: str = "host", hint: object = 4096) -> RegionInfo:
    return RegionInfo("pool", kind, 8, 8, 1, hints={"nixl": hint})


@pytest.mark.parametrize(
    ("peer", "theirs", "ours", "reason"),
    [
        (OWNER, remote(), "host", ""),
        (OWNER, remote("cuda"), "cuda", ""),
        (PeerInfo("o", 1, host_id()), remote(), "host", "does not offer it"),
        (OWNER, remote("file"), "host", "of kind file"),
        (OWNER, remote(), "file", "of kind file"),
        (OWNER, remote(hint=None), "host", "has not registered"),
        (PeerInfo("o", 1, "elsewhere", {"nixl": 1}), remote(), "host", "nixl.allow_tcp"),
    ],
)
def test_transport_tells_which_regions_it_does_not_reach(
    house, monkeypatch, peer, theirs, ours, reason
):
    monkeypatch.setattr(nixl_module, "_has_rdma", lambda: False)

    found = house.reader.unreachable(peer, theirs, region(ours))

    assert reason in found
    assert bool(reason) == bool(found)


def test_peer_on_another_host_is_reached_by_rdma_or_with_leave(make_house, monkeypatch, tmp_path):
    far = PeerInfo("o", 1, "elsewhere", {"nixl": 1})
    house, with_leave = make_house(), make_house(allow_tcp=True)
    monkeypatch.setattr(nixl_module, "_RDMA_DEVICES", tmp_path)

    assert house.reader.unreachable(far, remote(), region("host"))
    assert not with_leave.reader.unreachable(far, remote(), region("host"))
    (tmp_path / "mlx5_0").mkdir()
    assert not house.reader.unreachable(far, remote(), region("host"))


def test_file_is_not_registered(house):
    assert house.reader.attach(region("file")) is None
    house.reader.detach(region("file"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lanes": 0},
        {"depth": 0},
        {"max_visits": 0},
        {"poll_s": 0.0},
        {"dial_timeout_s": 0.0},
        {"close_timeout_s": 0.0},
        {"num_threads": -1},
        {"grace_s": -0.1},
        {"part_bytes": 4095},
    ],
)
def test_option_out_of_bounds_is_named(wrong):
    (name,) = wrong

    with pytest.raises(InvalidValue, match=f"nixl.{name}"):
        NixlConfig(**wrong)
