"""One worker's connection: its events, and a replay while something is missing.

While a replay is on its way the events are not read: they wait in their socket's queue, which is
bounded, and what does not fit there is the next gap.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from selectors import EVENT_READ, BaseSelector

import zmq

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.event_stream import wire
from stafette.kvtransfer.event_stream.dialects import Dialect
from stafette.kvtransfer.event_stream.follower import Follower

logger = logging.getLogger(__name__)

_BURST = 64  # messages; then it is another worker's turn
_PING_MS = 5_000  # the connection to a host that vanished is made anew


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberConfig:
    topic: str = ""
    lost_after_s: float = 5.0  # without a word; several times the publishers' heartbeat_s
    replay_timeout_s: float = 5.0  # from one batch of a replay to the next
    retry_s: float = 1.0  # after a replay that failed
    max_replays: int = 32  # at the same time
    queue_batches: int = 1_000  # for each worker; what is beyond is lost, and asked for again
    key: bytes | None = field(default=None, repr=False)  # that of the publishers

    def __post_init__(self) -> None:
        for name in ("lost_after_s", "replay_timeout_s", "retry_s"):
            if getattr(self, name) <= 0:
                raise InvalidValue(name, getattr(self, name), "must be above 0")
        for name in ("max_replays", "queue_batches"):
            if getattr(self, name) < 1:
                raise InvalidValue(name, getattr(self, name), "must be at least 1")
        wire.check_key(self.key)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the links of one subscriber share."""

    context: wire.Context
    selector: BaseSelector
    config: SubscriberConfig
    clock: Callable[[], float]


class Phase(Enum):
    LIVE = auto()
    WAITING = auto()  # for its turn to replay
    REPLAYING = auto()


class Link:
    """Made by anyone; once started, only the subscriber's thread may use it."""

    def __init__(
        self,
        follower: Follower,
        dialect: Dialect,
        address: str,
        replay_address: str | None,
        around: Surroundings,
    ) -> None:
        self.follower = follower
        self.phase = Phase.LIVE
        self._dialect = dialect
        self._replay_address = replay_address
        self._context, self._selector = around.context, around.selector
        self._config, self._clock = around.config, around.clock
        self._heard_at = self._clock()
        self._lost = False
        self._retry_at = self._heard_at
        self._deadline = 0.0  # of the replay
        self._asked = 0  # the first batch of the replay
        self._replay: wire.Socket | None = None
        if replay_address is not None:
            self._make_socket(zmq.DEALER, replay_address).close()  # refuse a bad address now
        self._events = self._make_socket(zmq.SUB, address)

    def start(self) -> None:
        """Listen. A worker without heartbeats is asked at once, for it may stay silent for long."""
        if self._replay_address is not None and not self._dialect.heartbeats:
            self.phase = Phase.WAITING
        else:
            self._selector.register(self._events.fileno(), EVENT_READ, self)

    def pump(self) -> bool:
        """Read some of what has arrived; return whether there may be more."""
        for _ in range(_BURST):
            socket = self._replay or self._events
            if self.phase is Phase.WAITING or not _readable(socket):
                return False
            self._take(socket.recv_multipart())
        return True

    def begin_replay(self) -> None:
        """Ask for what is missing. The socket is for this answer alone: a late one finds nobody."""
        self.phase = Phase.REPLAYING
        self._asked = self.follower.start
        self._deadline = self._clock() + self._config.replay_timeout_s
        self.follower.begin_replay()
        try:
            self._replay = self._make_socket(zmq.DEALER, self._replay_address or "")
        except zmq.ZMQError as error:  # no more sockets, for now
            logger.warning("no replay from %s: %s", self.follower.worker_id, error)
            self._end_replay()
            return
        first = wire.number_frame(self._dialect.request(self._asked))
        self._replay.send_multipart((b"", first), zmq.NOBLOCK)
        self._selector.register(self._replay.fileno(), EVENT_READ, self)

    def check(self) -> bool:
        """Notice a replay that does not end, and a silent worker; return whether to pump again."""
        now = self._clock()
        if self.phase is Phase.REPLAYING:
            return now >= self._deadline and self._give_up_waiting()
        if self.phase is Phase.WAITING or not self._is_overdue(now):
            return False
        if _readable(self._events):  # others were slow, and it was not read yet
            return True
        self._lost = True
        waited = self._config.lost_after_s
        logger.warning("no word from %s for %g s: it is lost", self.follower.worker_id, waited)
        self.follower.lose()
        return False

    def close(self) -> None:
        if self.phase is Phase.LIVE:
            self._selector.unregister(self._events.fileno())
        self._close_replay()
        self._events.close()

    def _take(self, frames: list[bytes]) -> None:
        if self.phase is Phase.REPLAYING and wire.is_end(frames):
            self._heard_at = self._clock()
            self._end_replay()
            return
        try:
            batch = self._dialect.read(*wire.read_frames(frames))
        except MalformedMessage:
            self.follower.counters.malformed += 1
            return
        before = self.follower.start
        self.follower.take(batch)
        self._hear(before)

    def _hear(self, before: int) -> None:
        """The worker has spoken: what follows from it."""
        now = self._heard_at = self._clock()
        self._lost = False
        if self.phase is Phase.REPLAYING:
            if self.follower.start != before:  # who only repeats itself comes to no end
                self._deadline = now + self._config.replay_timeout_s
        elif self.follower.behind and self._replay_address is not None and now >= self._retry_at:
            self._selector.unregister(self._events.fileno())
            self.phase = Phase.WAITING

    def _give_up_waiting(self) -> bool:
        waited, name = self._config.replay_timeout_s, self.follower.worker_id
        logger.warning("the replay of %s's events did not go on within %g s", name, waited)
        if self.follower.behind and self.follower.start != self._asked:
            self._close_replay()  # some came, and the rest was lost on its way: ask for that
            self.begin_replay()
        else:
            self._end_replay()
        return True

    def _end_replay(self) -> None:
        """Go on with the events, which have waited; what is still missing shows there."""
        self._close_replay()
        if self.follower.behind:
            self._retry_at = self._clock() + self._config.retry_s
        self.follower.end_replay()
        self._selector.register(self._events.fileno(), EVENT_READ, self)
        self.phase = Phase.LIVE

    def _close_replay(self) -> None:
        if self._replay is not None:
            self._selector.unregister(self._replay.fileno())
            self._replay.close()
            self._replay = None

    def _is_overdue(self, now: float) -> bool:
        if self._lost or not self._dialect.heartbeats:
            return False
        return now - self._heard_at > self._config.lost_after_s

    def _make_socket(self, kind: int, address: str) -> wire.Socket:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.rcvhwm = self._config.queue_batches
        socket.maxmsgsize = wire.BATCH_BYTES
        socket.heartbeat_ivl = _PING_MS
        if kind == zmq.SUB:
            socket.subscribe(self._config.topic)
        try:
            wire.connect(socket, address, self._config.key)
        except InvalidValue:
            socket.close()
            raise
        return socket


def _readable(socket: wire.Socket) -> bool:
    return bool(int(socket.get(zmq.EVENTS)) & zmq.POLLIN)
