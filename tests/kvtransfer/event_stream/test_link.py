"""One worker's connection, step by step: the test is the worker, the clock and the handler."""

import time
from selectors import DefaultSelector

import msgpack
import pytest
import zmq

from stafette.kvtransfer.event_stream.dialects import dialect_of
from stafette.kvtransfer.event_stream.follower import Counters, Follower
from stafette.kvtransfer.event_stream.link import Link, Phase, SubscriberConfig, Surroundings

END = b"\xff" * 8
CONFIG = SubscriberConfig(lost_after_s=5, replay_timeout_s=5, retry_s=1, queue_batches=3)


class World:
    """A vLLM worker, whose batches are numbered from 0, and a link that follows it."""

    def __init__(self, books) -> None:
        self.context, self.selector = zmq.Context(), DefaultSelector()
        self.pub, self.router = self.context.socket(zmq.PUB), self.context.socket(zmq.ROUTER)
        self.address, self.replay_address = (
            f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
            for socket in (self.pub, self.router)
        )
        self.now, self.room, self.books = 100.0, True, books
        self.follower = Follower("w", books, Counters(), snapshots=False)
        around = Surroundings(
            self.context, self.selector, CONFIG, lambda: self.now, lambda worker_id: self.room
        )
        dialect = dialect_of("vllm", "w")
        self.link = Link(self.follower, dialect, self.address, self.replay_address, around)
        self.link.start()

    def close(self) -> None:
        self.link.close()
        self.selector.close()
        self.pub.close(linger=0)
        self.router.close(linger=0)
        self.context.term()

    def request(self) -> int:
        """Return the number that the link asks for, whose identity is kept for the answer."""
        if self.link.phase is Phase.WAITING:
            self.link.begin_replay()
        assert self.router.poll(20_000)
        self.asker, _, number = self.router.recv_multipart()
        return int.from_bytes(number, "big")

    def answer(self, *numbers: int, end: bool = True) -> None:
        for number in numbers:
            self.router.send_multipart((self.asker, b"", frame(number), batch(number)))
        if end:
            self.router.send_multipart((self.asker, b"", END, b""))

    def publish(self, *numbers: int) -> None:
        for number in numbers:
            self.pub.send_multipart((b"", frame(number), batch(number)))

    def pump_until(self, condition) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            self.link.pump()
            assert time.monotonic() < deadline, (self.link.phase, self.books.calls)

    def begin(self, last: int) -> None:
        """Have the link know the batches up to that number, and listen."""
        assert self.request() == 0
        self.answer(*range(last + 1))
        self.pump_until(lambda: self.link.phase is Phase.LIVE)
        while not self.link._events.poll(1):
            self.publish(last)  # which it knows already
        self.link.pump()


def frame(number: int) -> bytes:
    return number.to_bytes(8, "big")


def batch(number: int) -> bytes:
    return msgpack.packb([1.0 + number, [["BlockStored", [number], None, [number], 1, None]], 0])


@pytest.fixture
def world(make_books):
    found = World(make_books(exact=False))
    yield found
    found.close()


def test_no_socket_has_zeromqs_heartbeats_and_the_one_for_an_answer_never_connects_again(world):
    """With them, or with a queue that is full meanwhile, libzmq ends the process."""
    world.begin(0)
    world.publish(5)
    world.pump_until(lambda: world.link.phase is Phase.WAITING)
    world.link.begin_replay()

    for socket in (world.link._events, world.link._replay):
        assert socket.get(zmq.HEARTBEAT_IVL) <= 0
        assert socket.get(zmq.TCP_KEEPALIVE) == 1
    assert world.link._replay.get(zmq.RECONNECT_IVL) == -1
    assert world.link._events.get(zmq.RECONNECT_IVL) >= 1_000


def test_events_that_come_while_a_replay_is_on_its_way_are_delivered_behind_it(world):
    world.begin(1)
    world.publish(4)
    world.pump_until(lambda: world.link.phase is Phase.WAITING)
    assert world.request() == 1  # the last that is known, and on

    world.publish(5, 6)
    world.pump_until(lambda: len(world.link._held) == 2)
    world.answer(1, 2, 3, 4)

    world.pump_until(lambda: world.books.calls == [1, 2, 3, 4, 5, 6, 7])
    assert world.link.phase is Phase.LIVE


def test_of_more_events_than_may_wait_the_newest_shows_what_is_missing(world):
    world.begin(0)
    world.publish(2)
    world.pump_until(lambda: world.link.phase is Phase.WAITING)
    world.request()

    world.publish(*range(3, 10))
    world.pump_until(lambda: world.link._held and world.link._held[-1][1] == frame(9))
    assert len(world.link._held) == 3
    world.answer(0, 1, 2)

    world.pump_until(lambda: world.link.phase is Phase.WAITING)  # again
    assert world.books.calls == [1, 2, 3, 4, 5]
    assert world.request() == 4


def test_an_answer_is_read_as_the_handler_has_room_and_not_given_up_meanwhile(world):
    world.begin(0)
    world.publish(3)
    world.pump_until(lambda: world.link.phase is Phase.WAITING)
    world.request()
    world.room = False

    world.answer(0, 1, 2, 3)
    for _ in range(10):
        world.link.pump()
        world.now += 4
        assert not world.link.check()
    assert world.books.calls == [1]
    world.room = True

    world.pump_until(lambda: world.books.calls == [1, 2, 3, 4])


def test_an_answer_that_does_not_go_on_is_asked_for_again_from_where_it_stopped(world):
    world.begin(0)
    world.publish(5)
    world.pump_until(lambda: world.link.phase is Phase.WAITING)
    world.request()
    world.answer(0, 1, 2, end=False)
    world.pump_until(lambda: world.books.calls == [1, 2, 3])

    world.now += 6
    assert world.link.check()

    assert world.request() == 2
    world.answer(2, 3, 4, 5)
    world.pump_until(lambda: world.books.calls == [1, 2, 3, 4, 5, 6])


def test_a_hole_in_an_answer_is_asked_for_at_once(world):
    world.begin(0)
    world.publish(5)
    world.pump_until(lambda: world.link.phase is Phase.WAITING)
    world.request()

    world.answer(0, 1, 4, end=False)  # a full socket dropped two of them
    world.pump_until(lambda: world.router.poll(0))

    assert world.request() == 1
    world.answer(1, 2, 3, 4, 5)
    world.pump_until(lambda: world.books.calls == [1, 2, 3, 4, 5, 6])


def test_an_answer_that_ended_too_early_is_asked_for_again_and_not_given_up(world):
    world.begin(0)
    world.publish(5)
    world.pump_until(lambda: world.link.phase is Phase.WAITING)
    world.request()

    world.answer(0, 1, 2)

    world.pump_until(lambda: world.router.poll(0))
    assert world.request() == 2
    world.answer(2, 3, 4, 5)
    world.pump_until(lambda: world.books.calls == [1, 2, 3, 4, 5, 6])
    assert world.follower.counters.failed_replays == 0


def test_an_answer_without_anything_new_is_given_up_and_asked_for_after_a_while(world):
    world.begin(0)
    world.publish(5)
    world.pump_until(lambda: world.link.phase is Phase.WAITING)
    world.request()

    world.answer(0)

    world.pump_until(lambda: world.link.phase is Phase.LIVE)
    assert world.books.calls == [1, "reset"]
    assert world.follower.counters.failed_replays == 1


@pytest.mark.parametrize("answer", [(), (1,)])  # nothing there, or another batch in its place
def test_a_last_batch_that_is_not_there_any_more_shows_another_life(world, answer):
    world.begin(1)
    world.now += 6
    assert world.link.check()
    assert world.request() == 1

    for number in answer:
        later = msgpack.packb([500.0, [["AllBlocksCleared"]], 0])
        world.router.send_multipart((world.asker, b"", frame(number), later))
    world.answer()

    world.pump_until(lambda: world.router.poll(0))
    assert world.request() == 0  # all of the new life
    world.answer(0)
    world.pump_until(lambda: world.link.phase is Phase.LIVE)
    assert world.books.of().on("device") == {bytes(8)}


def test_a_silent_worker_that_does_not_answer_is_lost_once_and_asked_more_seldom(world):
    world.begin(0)
    world.now += 6
    assert world.link.check()  # asks
    world.request()

    world.now += 6
    world.link.check()
    assert world.books.calls == [1, "lost"]
    world.now += 6
    assert not world.link.check()
    world.now += 30
    assert world.link.check()
    assert world.request() == 0
    world.answer(0)

    world.pump_until(lambda: world.books.calls == [1, "lost", 1])
    assert world.follower.counters.lost == 1
