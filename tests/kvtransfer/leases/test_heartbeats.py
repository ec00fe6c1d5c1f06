import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stafette.kvtransfer.errors import PeerLost
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.kvtransfer.leases.holder import LeaseHolder
from stafette.kvtransfer.leases.service import OPEN, RELEASE, RENEW
from stafette.kvtransfer.leases.ticket import Ticket
from stafette.kvtransfer.regions import RegionInfo

PATIENCE_S = 20.0
WORDS = np.zeros(1, "<i8").tobytes()


class Owners:
    """Answers as owners do; `left` is what a heartbeat leaves, `held` owners do not answer."""

    def __init__(self, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self.left: object = ttl_s
        self.lost: set[str] = set()
        self.gates: dict[str, threading.Event] = {}
        self.asked: list[tuple[str, str, object]] = []
        self.changed = threading.Condition()

    def __call__(self, owner: str, operation: str, payload: object) -> object:
        if operation == RENEW and owner in self.gates:
            self.gates[owner].wait(PATIENCE_S)
        with self.changed:
            self.asked.append((owner, operation, payload))
            self.changed.notify_all()
        if owner in self.lost:
            raise PeerLost(owner, "for this test")
        if operation == OPEN:
            region = RegionInfo("pool", "host", 16, 16, 1).pack()
            return [0, region, WORDS, WORDS, "read", self.ttl_s, self.ttl_s]
        return [self.left] * len(payload) if operation == RENEW else True

    def await_that(self, condition) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self.asked), PATIENCE_S), self.asked

    def beats(self, owner: str) -> list[object]:
        return [ids for name, what, ids in self.asked if (name, what) == (owner, RENEW)]


@pytest.fixture
def start():
    started = []

    def make(ttl_s: float = 0.12) -> tuple[Owners, LeaseHolder]:
        owners, executor = Owners(ttl_s), ThreadPoolExecutor(4)
        holder = LeaseHolder(LeaseConfig(), owners, executor, time.monotonic)
        started.append((owners, holder, executor))
        return owners, holder

    yield make
    for owners, holder, executor in started:
        for gate in owners.gates.values():
            gate.set()
        holder.close()
        executor.shutdown()


def await_end(lease) -> str:
    deadline = threading.Event()
    for _ in range(2_000):
        if lease.ended is not None:
            return lease.ended.reason
        deadline.wait(0.01)
    raise AssertionError("the lease did not end")


def test_all_leases_of_an_owner_go_into_one_heartbeat(start):
    owners, holder = start()
    for number in (1, 2, 3):
        holder.open(Ticket("a", 1, number))

    owners.await_that(lambda asked: ("a", RENEW, [1, 2, 3]) in asked)


def test_a_released_lease_is_given_back_once_and_beats_no_more(start):
    owners, holder = start()
    lease, other = holder.open(Ticket("a", 1, 1)), holder.open(Ticket("a", 1, 2))

    lease.release()
    lease.release()
    owners.await_that(lambda asked: ("a", RELEASE, [1, True]) in asked)
    owners.await_that(lambda asked: ("a", RENEW, [2]) in asked)

    assert lease.ended is not None
    assert other.ended is None
    assert owners.asked.count(("a", RELEASE, [1, True])) == 1


def test_a_rejected_ticket_is_told_to_its_owner_without_being_opened(start):
    owners, holder = start()

    holder.reject(Ticket("a", 1, 9))

    owners.await_that(lambda asked: asked == [("a", RELEASE, [9, False])])


def test_a_lease_that_its_owner_has_ended_is_known_to_be_over(start):
    owners, holder = start()
    owners.left = 0.0

    lease = holder.open(Ticket("a", 1, 1))

    assert "its owner has ended it" in await_end(lease)


def test_a_lease_whose_heartbeats_are_not_answered_is_over_when_its_time_is(start):
    owners, holder = start()
    lease = holder.open(Ticket("a", 1, 1))

    owners.lost.add("a")

    assert "no heartbeat" in await_end(lease)
    assert len(owners.beats("a")) >= 2  # it was tried again


@pytest.mark.parametrize("answer", ["soon", None, -1.0, float("nan")])
def test_an_answer_that_makes_no_sense_counts_as_none(start, answer):
    owners, holder = start()
    owners.left = answer

    lease = holder.open(Ticket("a", 1, 1))

    assert "no heartbeat" in await_end(lease)


def test_an_owner_that_does_not_answer_keeps_no_other_lease_from_being_renewed(start):
    owners, holder = start()
    owners.gates["slow"] = threading.Event()
    holder.open(Ticket("slow", 1, 1))
    quick = holder.open(Ticket("quick", 1, 2))

    owners.await_that(lambda asked: len(owners.beats("quick")) >= 10)

    assert quick.ended is None
    assert owners.beats("slow") == []


def test_the_leases_of_an_owner_who_is_gone_end_at_once(start):
    owners, holder = start(ttl_s=60.0)
    lease, other = holder.open(Ticket("a", 1, 1)), holder.open(Ticket("b", 1, 1))

    holder.drop_owner("a", "it has restarted")

    assert "it has restarted" in str(lease.ended)
    assert other.ended is None
