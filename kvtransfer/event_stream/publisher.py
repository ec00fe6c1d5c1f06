"""Publishes a worker's KV events, and gives those who missed some a replay or a snapshot."""

import logging
import socket as sockets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock, Thread
from types import TracebackType

import zmq

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.event_log import EventLog
from stafette.kvtransfer.event_stream import wire
from stafette.kvtransfer.events import EventBatch, encode

logger = logging.getLogger(__name__)

LOOPBACK = "tcp://127.0.0.1:*"  # the system chooses the port


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherConfig:
    address: str = LOOPBACK
    replay_address: str = LOOPBACK
    topic: str = ""
    heartbeat_s: float = 1.0  # an idle worker sends an empty batch this often
    queue_batches: int = (
        10_000  # for each follower; one that is slower loses some, and asks for them
    )
    key: bytes | None = field(default=None, repr=False)  # None: anyone may follow

    def __post_init__(self) -> None:
        if self.heartbeat_s <= 0:
            raise InvalidValue("heartbeat_s", self.heartbeat_s, "must be above 0")
        if self.queue_batches < 1:
            raise InvalidValue("queue_batches", self.queue_batches, "must be at least 1")
        wire.check_key(self.key)


@dataclass(slots=True)
class PublisherCounters:
    batches: int = 0
    heartbeats: int = 0
    replays: int = 0
    snapshots: int = 0
    refused: int = 0  # requests that are none, and answers that do not fit


class EventPublisher:
    """Sends the batches of one log. `publish` and `send` never wait, and any thread may call them.

    A thread of its own answers those who ask for a replay, and sends a heartbeat when nothing else
    was sent for a while: an empty batch with a number, so that a lost last batch is noticed too.
    For `inproc://` addresses, `context` is the one that the follower uses as well.
    """

    def __init__(
        self,
        log: EventLog,
        config: PublisherConfig | None = None,
        context: wire.Context | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.log = log
        self.counters = PublisherCounters()
        self._config = config = config or PublisherConfig()
        self._clock = clock
        self._topic = config.topic.encode()
        self._lock = Lock()  # of the events' socket, which the engine and our thread share
        self._closed = False
        self._sent_at = clock() - config.heartbeat_s  # the first heartbeat is due
        self._owns_context = context is None
        self._context = context or wire.Context()
        self._events, self._replays = self._make_sockets()
        try:
            self.address = wire.bind(self._events, config.address, config.key)
            self.replay_address = wire.bind(self._replays, config.replay_address, config.key)
        except InvalidValue:
            self._close_sockets()
            raise
        self._wake, self._woken = sockets.socketpair()
        self._thread = Thread(target=self._run, name="kv-event-publisher", daemon=True)
        self._thread.start()

    def __enter__(self) -> "EventPublisher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def publish(self) -> EventBatch | None:
        """Flush the log and send the batch, if anything happened."""
        with self._lock:
            batch = self.log.flush()
            if batch is not None:
                self._send(batch)
        return batch

    def send(self, batch: EventBatch) -> None:
        """Send what the owner of the log has flushed; batches come in their order."""
        with self._lock:
            self._send(batch)

    def close(self) -> None:
        """Stop. What is sent after this goes nowhere. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._wake.send(b"\0")
        self._thread.join()
        self._close_sockets()
        self._wake.close()
        self._woken.close()

    def _make_sockets(self) -> tuple[wire.Socket, wire.Socket]:
        events, replays = self._context.socket(zmq.PUB), self._context.socket(zmq.ROUTER)
        events.sndhwm = self._config.queue_batches
        replays.sndhwm = (
            self.log.capacity + 1
        )  # a whole replay and its end; a router drops the rest
        for socket in (events, replays):
            socket.linger = 0
            socket.maxmsgsize = wire.REQUEST_BYTES
        return events, replays

    def _close_sockets(self) -> None:
        self._events.close()
        self._replays.close()
        if self._owns_context:
            self._context.term()

    def _send(self, batch: EventBatch) -> None:
        if self._closed:
            return
        self._events.send_multipart((self._topic, wire.number_frame(batch.seq), encode(batch)))
        self._sent_at = self._clock()
        self.counters.batches += 1

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._replays, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        while not self._closed:
            due_s = self._sent_at + self._config.heartbeat_s - self._clock()
            if due_s <= 0:
                self._send_heartbeat()
            elif self._replays in dict(poller.poll(int(due_s * 1000) + 1)):
                self._answer(self._replays.recv_multipart())

    def _send_heartbeat(self) -> None:
        with self._lock:
            self._send(self.log.beat())
        self.counters.heartbeats += 1

    def _answer(self, frames: list[bytes]) -> None:
        """Answer one request; who asks for nothing that we know gets no answer."""
        try:
            identity, start = _read_request(frames)
            for batch in self._batches_from(start):
                number = wire.number_frame(batch.seq)
                self._replays.send_multipart((identity, b"", number, encode(batch)))
            self._replays.send_multipart((identity, b"", wire.END, b""))
        except (MalformedMessage, InvalidValue) as error:  # InvalidValue: too large to be sent
            self.counters.refused += 1
            logger.warning("a replay of %s's events was refused: %s", self.log.worker_id, error)

    def _batches_from(self, start: int) -> list[EventBatch]:
        """Return the batches from number `start` on; 0, which no batch has, asks for a snapshot."""
        batches = self.log.since(start - 1) if start else [self.log.snapshot()]
        if batches and batches[0].snapshot:
            self.counters.snapshots += 1
        else:
            self.counters.replays += 1
        return batches


def _read_request(frames: list[bytes]) -> tuple[bytes, int]:
    """Return who asks, and from which number on."""
    match frames:
        case [identity, b"", number]:
            return identity, wire.read_number(number)
    raise MalformedMessage("request", "[empty, first number]")
