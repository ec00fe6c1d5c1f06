"""One worker's connection: its events, and a replay while something is missing.

Events are always read at once, and never wait in their socket: see `delivery`. While a replay is on
its way they wait here, up to a limit; what is beyond is the next gap. The answer to a replay is
read as fast as the handler takes it in, and waits in its own socket, which never connects anew.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from selectors import EVENT_READ, BaseSelector

import zmq

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.event_stream import wire
from stafette.kvtransfer.event_stream.dialects import Dialect
from stafette.kvtransfer.event_stream.follower import Follower

logger = logging.getLogger(__name__)

_BURST = 64  # messages; then it is another worker's turn
_LOST_PAUSE = 6  # times lost_after_s, until a worker that is lost is asked again
_CONNECT_AGAIN_MS = 1_000  # by then, all that came from the connection before has been read
# A connection to a host that vanished is noticed within half a minute. ZeroMQ's own heartbeats end
# good ones when a queue is full.
_KEEPALIVE = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 10,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 4,
    zmq.TCP_MAXRT: 30_000,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberConfig:
    topic: str = ""
    lost_after_s: float = 5.0  # without a word; several times the publishers' heartbeat_s. Workers
    # without heartbeats (vLLM) are asked after this time what is new, and lost without an answer.
    replay_timeout_s: float = 5.0  # from one batch of a replay to the next
    retry_s: float = 1.0  # after a replay that failed
    max_replays: int = 32  # at the same time
    queue_batches: int = 1_000  # of each worker, that wait for the handler; others are asked again
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
    has_room: Callable[[str], bool]  # for one more batch of a worker


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
        self._has_room = partial(around.has_room, follower.worker_id)
        self._heard_at = self._clock()
        self._lost = False
        self._retry_at = self._heard_at
        self._deadline = 0.0  # of the replay
        self._asked = 0  # the first batch of the replay
        self._asked_epoch = follower.epoch
        self._answered = False
        self._asked_at = self._heard_at
        self._replay: wire.Socket | None = None
        self._held: deque[list[bytes]] = deque()  # events that came while a replay was on its way
        if replay_address is not None:
            self._make_socket(zmq.DEALER, replay_address).close()  # refuse a bad address now
        self._events = self._make_socket(zmq.SUB, address)

    def start(self) -> None:
        """Listen. A worker without heartbeats is asked at once, for it may stay silent for long."""
        self._selector.register(self._events.fileno(), EVENT_READ, self)
        if self._replay_address is not None and not self._dialect.heartbeats:
            self.phase = Phase.WAITING

    def pump(self) -> bool:
        """Read some of what has arrived; return whether there may be more."""
        more_events = self._pump_events()
        return self._pump_replay() or more_events

    def begin_replay(self) -> None:
        """Ask for what is missing. The socket is for this answer alone: a late one finds nobody."""
        self.phase = Phase.REPLAYING
        self._asked_epoch, self._answered = self.follower.epoch, False
        self._asked, self._asked_at = self.follower.start, self._clock()
        self._deadline = self._asked_at + self._config.replay_timeout_s
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
        match self.phase:
            case Phase.REPLAYING:
                return self._is_stuck(now) and self._give_up_waiting()
            case Phase.LIVE if self._must_replay(now):
                self.phase = Phase.WAITING
                return True
            case Phase.LIVE if self._is_overdue(now):
                return _readable(self._events) or self._miss()  # others may have been slow
        return False

    def close(self) -> None:
        self._selector.unregister(self._events.fileno())
        self._close_replay()
        self._events.close()

    def _pump_events(self) -> bool:
        for _ in range(_BURST):
            if not _readable(self._events):
                return False
            frames = self._events.recv_multipart()
            if self.phase is Phase.LIVE:
                self._take(frames)
            elif len(self._held) < self._config.queue_batches:
                self._held.append(frames)
            else:
                self._held[-1] = frames  # the newest shows how much is missing
        return True

    def _pump_replay(self) -> bool:
        for _ in range(_BURST):
            # Without room the rest waits; who makes room has us pumped again.
            if self._replay is None or not self._has_room() or not _readable(self._replay):
                return False
            frames = self._replay.recv_multipart()
            if wire.is_end(frames):
                self._heard_at, self._lost = self._clock(), False
                self._take_end()
            else:
                self._answered = True
                self._take(frames)
        return True

    def _take_end(self) -> None:
        is_another = not self._answered or self.follower.epoch != self._asked_epoch
        if self._asked and not self._dialect.snapshots and is_another:
            # The worker has restarted, and numbered past what we asked for, or not so far yet.
            self.follower.reset()
            self._ask_anew()
        elif not self._ask_for_the_rest():
            self._end_replay()

    def _take(self, frames: list[bytes]) -> None:
        try:
            batch = self._dialect.read(*wire.read_frames(frames))
        except MalformedMessage:
            self.follower.counters.malformed += 1
            return
        before = self.follower.start
        self.follower.take(batch, self._has_room())
        self._hear(before)
        if self.phase is Phase.REPLAYING and batch.seq > self.follower.start:
            self._ask_for_the_rest()  # its socket was full, and dropped some of the answer

    def _hear(self, before: int) -> None:
        """The worker has spoken: what follows from it."""
        now = self._heard_at = self._clock()
        self._lost = False
        if self.phase is Phase.REPLAYING:
            if self.follower.start != before:  # who only repeats itself comes to no end
                self._deadline = now + self._config.replay_timeout_s
        elif self._must_replay(now):
            self.phase = Phase.WAITING

    def _must_replay(self, now: float) -> bool:
        return self.follower.behind and self._replay_address is not None and now >= self._retry_at

    def _is_stuck(self, now: float) -> bool:
        if not self._has_room():  # it waits for the handler, not for the worker
            self._deadline = now + self._config.replay_timeout_s
        return now >= self._deadline

    def _miss(self) -> bool:
        """Ask a silent worker that has no heartbeats; another one is lost."""
        if self._dialect.heartbeats:
            self._lose(self._config.lost_after_s)
            return False
        self.phase = Phase.WAITING
        return True

    def _lose(self, waited_s: float) -> None:
        self._lost = True
        logger.warning("no word from %s for %g s: it is lost", self.follower.worker_id, waited_s)
        self.follower.lose()

    def _give_up_waiting(self) -> bool:
        waited, name = self._config.replay_timeout_s, self.follower.worker_id
        logger.warning("the replay of %s's events did not go on within %g s", name, waited)
        if self._ask_for_the_rest():
            return True
        heard = self._heard_at >= self._asked_at or self._held
        if not self._dialect.heartbeats and not heard and not self._lost:
            self._lose(waited)
        self._end_replay()
        return True

    def _ask_for_the_rest(self) -> bool:
        """Ask again if the answer brought some of what was missing, and not all."""
        if not self.follower.behind or self.follower.start == self._asked:
            return False
        self._ask_anew()
        return True

    def _ask_anew(self) -> None:
        self._close_replay()
        self.begin_replay()

    def _end_replay(self) -> None:
        """Go on with the events that have waited; what is still missing shows there."""
        self._close_replay()
        if self.follower.behind:
            self._retry_at = self._clock() + self._config.retry_s
        self.follower.end_replay()
        self.phase = Phase.LIVE
        while self._held and self.phase is Phase.LIVE:
            self._take(self._held.popleft())

    def _close_replay(self) -> None:
        if self._replay is not None:
            self._selector.unregister(self._replay.fileno())
            self._replay.close()
            self._replay = None

    def _is_overdue(self, now: float) -> bool:
        silent_s = now - max(self._heard_at, self._asked_at)
        if self._dialect.heartbeats:
            return not self._lost and now - self._heard_at > self._config.lost_after_s
        pauses = _LOST_PAUSE if self._lost else 1
        return self._replay_address is not None and silent_s > pauses * self._config.lost_after_s

    def _make_socket(self, kind: int, address: str) -> wire.Socket:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.rcvhwm = self._config.queue_batches
        socket.maxmsgsize = wire.BATCH_BYTES
        for option, value in _KEEPALIVE.items():
            socket.setsockopt(option, value)
        if kind == zmq.SUB:
            socket.reconnect_ivl = _CONNECT_AGAIN_MS
            socket.subscribe(self._config.topic)
        else:
            socket.reconnect_ivl = -1  # never: it is for one answer
        try:
            wire.connect(socket, address, self._config.key)
        except InvalidValue:
            socket.close()
            raise
        return socket


def _readable(socket: wire.Socket) -> bool:
    return bool(int(socket.get(zmq.EVENTS)) & zmq.POLLIN)
