"""Notifications: bytes that tell the other side what is done, each delivered once.

The sender repeats one until it is acknowledged or its deadline has passed. The receiver knows the
numbers that it has seen of each life of a peer, so that a repeated one is not delivered again.
"""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from stafette.kvtransfer.errors import AccessDenied, InvalidValue, MalformedMessage
from stafette.kvtransfer.strict import whole

_log = logging.getLogger(__name__)
MAX_PAYLOAD_BYTES = 64 << 10
_U63_END = 1 << 63
_REMEMBERED_PEERS = 4_096


@dataclass(frozen=True, slots=True)
class Notification:
    peer: str
    payload: bytes


def check_payload(payload: bytes) -> None:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise InvalidValue("notify", len(payload), f"must be at most {MAX_PAYLOAD_BYTES} bytes")


Take = Callable[[Notification], None]


class Inbox:
    """What has come and was not fetched yet, and who wants some of it at once."""

    def __init__(self, capacity: int = 65_536, remembered: int = 4_096) -> None:
        self._capacity = capacity
        self._remembered = remembered
        self._waiting: deque[Notification] = deque()
        self._subscribers: dict[bytes, Take] = {}  # by what their notifications begin with
        self._seen: OrderedDict[tuple[str, int], OrderedDict[int, None]] = OrderedDict()
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self.repeated = 0  # deliveries of one that had come before

    def deliver(self, peer: str, epoch: int, value: object) -> bool:
        """Take in [number, payload]; False when that number had come before."""
        match value:
            case [number, bytes(payload)] if len(payload) <= MAX_PAYLOAD_BYTES:
                return self._take_in(peer, epoch, whole(number, "number", _U63_END), payload)
        raise MalformedMessage("notification", f"[number, at most {MAX_PAYLOAD_BYTES} bytes]")

    def subscribe(self, prefix: bytes, take: Take) -> None:
        """Pass on what begins so, instead of keeping it; `take` must not block."""
        with self._lock:
            if prefix in self._subscribers:
                raise InvalidValue("prefix", prefix, "has a subscriber: unsubscribe it first")
            self._subscribers[prefix] = take

    def unsubscribe(self, prefix: bytes) -> None:
        with self._lock:
            self._subscribers.pop(prefix, None)

    def fetch(self, timeout_s: float = 0.0) -> list[Notification]:
        """Return what has come, in order; wait that long for a first one."""
        with self._lock:
            if not self._waiting and timeout_s > 0:
                self._arrived.wait(timeout_s)
            found = list(self._waiting)
            self._waiting.clear()
        return found

    def _take_in(self, peer: str, epoch: int, number: int, payload: bytes) -> bool:
        with self._lock:
            seen = self._numbers(peer, epoch)
            if number in seen:
                self.repeated += 1
                return False
            take = self._subscriber(payload)
            if take is None and len(self._waiting) >= self._capacity:
                raise AccessDenied(peer, "notify", f"{self._capacity} notifications wait here")
            seen[number] = None
            if len(seen) > self._remembered:
                seen.popitem(last=False)
            if take is None:
                self._waiting.append(Notification(peer, payload))
                self._arrived.notify_all()
        if take is not None:
            _pass_on(take, Notification(peer, payload))
        return True

    def _subscriber(self, payload: bytes) -> Take | None:
        found = (take for prefix, take in self._subscribers.items() if payload.startswith(prefix))
        return next(found, None)

    def _numbers(self, peer: str, epoch: int) -> OrderedDict[int, None]:
        seen = self._seen.setdefault((peer, epoch), OrderedDict())
        self._seen.move_to_end((peer, epoch))
        if len(self._seen) > _REMEMBERED_PEERS:
            self._seen.popitem(last=False)
        return seen


def _pass_on(take: Take, notification: Notification) -> None:
    try:
        take(notification)
    except Exception:  # the subscriber's code: the sender has done its part
        _log.exception("a subscriber failed at a notification from %s", notification.peer)
