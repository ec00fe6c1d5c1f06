"""A visit: the owner holds the blocks from its GO to its closing word, and no longer."""

import ctypes
import logging
import threading
import time

import numpy as np
import pytest

from stafette.kvtransfer.errors import LeaseEnded, MalformedMessage, StaleBlocks, TransferError
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.transport import Grant, PeerInfo, ReadJob
from stafette.kvtransfer.transports.visits.reception import Host, Reception
from stafette.kvtransfer.transports.visits.talk import GO, Question, Talk, TalkEnded
from stafette.kvtransfer.transports.visits.visit import Visit

PATIENCE_S = 10.0
READER = PeerInfo("reader", 1, "host")


class Job(ReadJob):
    def __init__(self, lease_id: int = 7, timeout_s: float = PATIENCE_S) -> None:
        self.source = Extents.of("pool", [(0, 8)])
        self.verify = True
        self.deadline = time.monotonic() + timeout_s
        self.stop = ctypes.c_int32(0)
        none = np.empty(0, np.int64)
        self.grant = Grant(lease_id, 1, 0, None, none, none.astype(np.uint64))

    def advance(self, nbytes): ...

    def finish(self, error=None): ...


class Control:
    """Dials a reception as the control connection would."""

    def __init__(self, tcp_pair, reception) -> None:
        self._tcp_pair = tcp_pair
        self._reception = reception
        self.threads = []

    def dial(self, purpose, timeout_s):
        ours, theirs = self._tcp_pair()
        thread = threading.Thread(target=self._reception.receive, args=(theirs, READER))
        thread.start()
        self.threads.append(thread)
        return ours

    def join(self):
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


class ReadingHost(Host):
    """Answers questions; the bytes are `moved` by the test."""

    def __init__(self, visitor, moved) -> None:
        self.visitor, self.moved = visitor, moved
        self.stopped = self.closed = 0

    def serve(self):
        while True:
            question = Question.read(self.visitor.talk.hear())
            self.visitor.answer(question, 5, self.moved)

    def stop(self):
        self.stopped += 1

    def close(self):
        self.closed += 1


class House:
    """A reception, its hosts, and a way to visit it."""

    def __init__(self, tcp_pair, gate, max_visits=8) -> None:
        self.hosts = []
        self.moving = threading.Event()
        self.reception = Reception("test", gate, self._make_host, max_visits)
        self.control = Control(tcp_pair, self.reception)
        self.talks = []

    def _make_host(self, visitor):
        self.hosts.append(ReadingHost(visitor, self._move))
        return self.hosts[-1]

    def _move(self, claim):
        assert self.moving.wait(PATIENCE_S)
        return 42

    def visit(self) -> Visit:
        visit = Visit(self.control, "test", PATIENCE_S)
        self.talks.append(visit.talk)
        return visit


@pytest.fixture
def house(tcp_pair, gate):
    house = House(tcp_pair, gate)
    yield house
    house.moving.set()
    for talk in house.talks:
        talk.close()
    house.reception.close(PATIENCE_S)
    house.control.join()
    assert all(host.closed == 1 for host in house.hosts)
    assert gate.held == 0


def test_blocks_are_held_from_go_to_the_closing_word(house, gate):
    visit, job = house.visit(), Job()

    assert visit.ask(job) == 5
    assert gate.held == 1
    house.moving.set()

    assert visit.closing_word(job.deadline) == 42
    assert gate.held == 0
    assert gate.asked == [("reader", 7, "pool")]


def test_refusal_is_the_owners_own_error_and_the_visit_goes_on(house):
    house.moving.set()
    visit = house.visit()

    with pytest.raises(LeaseEnded, match="0x8 is over: it expired"):
        visit.ask(Job(lease_id=8))

    job = Job()
    visit.ask(job)
    assert visit.closing_word(job.deadline) == 42


def test_blocks_that_changed_meanwhile_are_the_closing_word(house, gate):
    visit, job = house.visit(), Job()
    visit.ask(job)

    gate.at_the_end = StaleBlocks("owner", "pool", (3,))
    house.moving.set()

    with pytest.raises(StaleBlocks) as caught:
        visit.closing_word(job.deadline)
    assert caught.value.blocks == (3,)


def test_owner_that_says_nothing_is_waited_for_until_the_deadline(house):
    visit, job = house.visit(), Job(timeout_s=0.05)
    visit.ask(job)

    with pytest.raises(TimeoutError):
        visit.closing_word(job.deadline)


def test_visitor_that_leaves_sets_the_blocks_free(house, gate):
    visit = house.visit()
    visit.ask(Job())

    visit.talk.shutdown()
    house.moving.set()

    house.control.join()
    assert gate.held == 0


def test_closed_reception_ends_its_visits_and_takes_no_others(house):
    visit = house.visit()
    visit.ask(Job())
    house.moving.set()
    visit.closing_word(time.monotonic() + PATIENCE_S)

    house.reception.close(PATIENCE_S)

    assert [host.stopped for host in house.hosts] == [1]
    with pytest.raises(TalkEnded):
        visit.talk.hear(time.monotonic() + PATIENCE_S)
    with pytest.raises(ConnectionError):
        house.visit().ask(Job())


def test_visitor_beyond_the_limit_is_turned_away(tcp_pair, gate):
    house = House(tcp_pair, gate, max_visits=1)
    house.moving.set()
    first = house.visit()
    first.ask(Job())

    with pytest.raises(ConnectionError):
        house.visit().ask(Job())

    first.talk.close()
    house.control.join()
    house.reception.close(PATIENCE_S)


@pytest.mark.parametrize(
    "message",
    [
        [],
        ["read", 7, ["pool", b"1234567", b"12345678"], True, 1.0],
        ["read", -1, ["pool", b"", b""], True, 1.0],
        ["read", 7, ["pool", b"", b""], 1, 1.0],
        ["read", 7, ["pool", b"", b""], True, float("nan")],
    ],
)
def test_malformed_question_ends_the_visit_and_is_logged(house, caplog, message):
    visit = house.visit()

    with caplog.at_level(logging.WARNING):
        visit.talk.say(*message)
        with pytest.raises(TalkEnded):
            visit.talk.hear(time.monotonic() + PATIENCE_S)

    house.control.join()
    assert "closed the connection of reader" in caplog.text


@pytest.mark.parametrize("sent", [b"\xff" * 4, b"\0" * 4, b"\0\0\0\1\xc1"])
def test_bytes_that_are_no_message_are_malformed(tcp_pair, sent):
    ours, theirs = tcp_pair()
    theirs.sendall(sent)

    with pytest.raises(MalformedMessage):
        Talk(ours).hear(time.monotonic() + PATIENCE_S)


def test_message_that_breaks_off_is_not_the_end_of_a_talk(tcp_pair):
    ours, theirs = tcp_pair()
    theirs.sendall(b"\x00\x00")
    theirs.close()

    with pytest.raises(ConnectionError) as caught:
        Talk(ours).hear(time.monotonic() + PATIENCE_S)
    assert not isinstance(caught.value, TalkEnded)


def test_answer_of_another_kind_is_malformed(tcp_pair):
    ours, theirs = tcp_pair()
    owner = Talk(theirs)
    control = Control(lambda: (ours, theirs), None)
    control.dial = lambda purpose, timeout_s: ours
    visit = Visit(control, "test", PATIENCE_S)
    owner.say(GO, "no number")

    with pytest.raises(MalformedMessage, match="expected go"):
        visit.ask(Job())


def test_error_of_a_kind_that_no_transfer_has_is_told_as_one(tcp_pair):
    ours, theirs = tcp_pair()
    control = Control(None, None)
    control.dial = lambda purpose, timeout_s: ours
    visit = Visit(control, "test", PATIENCE_S)
    Talk(theirs).say("no", ["InvalidValue", ["a", 1, "b"]])

    with pytest.raises(TransferError, match="a = 1: b"):
        visit.ask(Job())


def test_shutdown_wakes_whoever_listens(tcp_pair):
    ours, _ = tcp_pair()
    talk, woken = Talk(ours), []

    def listen():
        try:
            talk.hear()
        except TalkEnded:
            woken.append(True)

    thread = threading.Thread(target=listen)
    thread.start()
    time.sleep(0.05)
    talk.shutdown()

    thread.join(PATIENCE_S)
    assert woken == [True]
    talk.close()
