"""What a worker publishes, byte by byte, and what it answers to those who missed some."""

import threading

import pytest
import zmq

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.event_log import EventLog
from stafette.kvtransfer.event_stream.publisher import EventPublisher, PublisherConfig
from stafette.kvtransfer.events import AllCleared, BlockStored, decode

END = b"\xff" * 8
QUIET = PublisherConfig(heartbeat_s=1e6)


@pytest.fixture
def context():
    found = zmq.Context()
    yield found
    found.destroy(linger=0)


@pytest.fixture
def start():
    publishers = []

    def make(config: PublisherConfig = QUIET, capacity: int = 100) -> EventPublisher:
        publishers.append(EventPublisher(EventLog("w", 7, capacity), config))
        return publishers[-1]

    yield make
    for publisher in publishers:
        publisher.close()
        assert not publisher._thread.is_alive()


def store(publisher: EventPublisher, count: int) -> None:
    for number in range(count):
        publisher.log.add(BlockStored(None, (number.to_bytes(2, "big"),)))
        publisher.publish()


@pytest.fixture
def ask(context):
    """Ask as vLLM's subscribers do; return the numbers of the answer, and whether it ended."""

    def request(publisher: EventPublisher, *frames: bytes, timeout_ms: int = 20_000):
        socket = context.socket(zmq.DEALER)
        socket.connect(publisher.replay_address)
        socket.send_multipart(frames)
        answer = []
        while socket.poll(timeout_ms):
            empty, number, payload = socket.recv_multipart()
            assert empty == b""
            if number == END:
                assert payload == b""
                break
            answer.append(decode(payload))
            assert answer[-1].seq == int.from_bytes(number, "big")
        socket.close()
        return answer

    return request


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def test_a_batch_is_published_as_topic_number_and_payload(start, context, eventually):
    publisher = start(PublisherConfig(topic="kv", heartbeat_s=0.01))
    socket = context.socket(zmq.SUB)
    socket.connect(publisher.address)
    socket.subscribe("kv")
    eventually(lambda: socket.poll(0))  # the first heartbeat that it hears

    publisher.log.add(AllCleared())
    batch = publisher.publish()
    while True:
        assert socket.poll(20_000)
        topic, seq, payload = socket.recv_multipart()
        if decode(payload).events:
            break
    socket.close()

    assert (topic, seq, decode(payload)) == (b"kv", number(batch.seq), batch)
    assert publisher.publish() is None  # nothing has happened since
    assert publisher.counters.heartbeats > 0


def test_who_asks_gets_the_batches_from_there_on_and_an_end(start, ask):
    publisher = start()
    store(publisher, 5)
    first = publisher.log.last_seq - 4

    answer = ask(publisher, b"", number(first + 2))

    assert [batch.seq for batch in answer] == [first + 2, first + 3, first + 4]
    assert publisher.counters.replays == 1


def test_who_has_all_gets_only_the_end(start, ask):
    publisher = start()
    store(publisher, 3)

    assert ask(publisher, b"", number(publisher.log.last_seq + 1)) == []


@pytest.mark.parametrize("first", [0, 1, 1_000])  # all of it, older than the ring, another life's
def test_who_cannot_be_helped_by_the_ring_gets_a_snapshot(start, ask, first):
    publisher = start(capacity=2)
    store(publisher, 5)

    (snapshot,) = ask(publisher, b"", number(first))

    assert snapshot.snapshot
    assert snapshot.seq == publisher.log.last_seq
    assert publisher.counters.snapshots == 1


@pytest.mark.parametrize(
    "frames", [(b"",), (b"", b"1234567"), (b"x", bytes(8)), (b"", bytes(8), b""), (bytes(8),)]
)
def test_a_request_that_is_none_gets_no_answer_and_the_next_one_does(
    start, ask, eventually, frames
):
    publisher = start()
    store(publisher, 1)

    assert ask(publisher, *frames, timeout_ms=20) == []

    eventually(lambda: publisher.counters.refused == 1)
    assert len(ask(publisher, b"", number(0))) == 1


def test_a_request_without_end_costs_its_sender_the_connection(start, ask):
    publisher = start()
    store(publisher, 1)

    assert ask(publisher, b"", bytes(100_000), timeout_ms=20) == []

    assert len(ask(publisher, b"", number(0))) == 1
    assert publisher.counters.refused == 0  # it was not even read


def test_many_threads_publish_without_gaps(start, ask):
    publisher = start(capacity=10_000)
    threads = [threading.Thread(target=store, args=(publisher, 100)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    answer = ask(publisher, b"", number(1))

    assert [batch.seq for batch in answer] == list(range(1, publisher.log.last_seq + 1))
    assert sum(len(batch.events) for batch in answer) == 400


def test_an_address_that_is_taken_is_named_and_nothing_stays_behind(start):
    publisher = start()

    with pytest.raises(InvalidValue, match="address = .*cannot be bound"):
        EventPublisher(EventLog("w", 1), PublisherConfig(replay_address=publisher.address))

    with pytest.raises(InvalidValue, match="address = 'nonsense'"):
        EventPublisher(EventLog("w", 1), PublisherConfig(address="nonsense"))


def test_after_the_end_what_is_sent_goes_nowhere(start):
    publisher = start()
    publisher.close()
    publisher.close()

    store(publisher, 1)

    assert publisher.log.last_seq > 0


@pytest.mark.parametrize("wrong", [{"heartbeat_s": 0}, {"queue_batches": 0}, {"key": b"short"}])
def test_a_wrong_value_is_named(wrong):
    with pytest.raises(InvalidValue) as caught:
        PublisherConfig(**wrong)

    assert caught.value.field == next(iter(wrong))
