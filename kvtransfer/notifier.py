"""Sends notifications: again and again until the peer acknowledges, or the deadline has passed.

Those for one peer go in order, by one thread: a peer that does not answer holds up no other.
"""

import logging
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from stafette.kvtransfer.errors import AccessDenied, KvTransferError, StaleEpoch
from stafette.kvtransfer.notifications import check_payload
from stafette.kvtransfer.peers import Peer

NOTIFY = "agent.notify"
_log = logging.getLogger(__name__)
_PAUSE_S = 0.05  # after a try that failed; doubles
_MOST_THREADS = 32
_FUTILE = (StaleEpoch, AccessDenied)  # this life of the peer will never take it


@dataclass(frozen=True, slots=True)
class _Message:
    number: int
    payload: bytes
    deadline: float


class Notifier:
    def __init__(self, call_timeout_s: float) -> None:
        self._call_timeout_s = call_timeout_s
        self._executor = ThreadPoolExecutor(_MOST_THREADS, "notify")
        self._queues: dict[Peer, deque[_Message]] = {}  # of the peers that a thread is busy with
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.delivered = 0
        self.undelivered = 0

    def send(self, peer: Peer, number: int, payload: bytes, timeout_s: float) -> None:
        """Deliver it once, in the background; the number is its own among all of this agent."""
        check_payload(payload)
        message = _Message(number, payload, time.monotonic() + timeout_s)
        with self._lock:
            if self._closed.is_set():
                self.undelivered += 1
            elif peer in self._queues:
                self._queues[peer].append(message)
            else:
                self._queues[peer] = deque([message])
                self._executor.submit(self._run, peer)

    def close(self) -> None:
        with self._lock:
            self._closed.set()
        self._executor.shutdown()

    def _run(self, peer: Peer) -> None:
        while (message := self._next(peer)) is not None:
            error = self._deliver(peer, message)
            with self._lock:
                self.delivered += error is None
                self.undelivered += error is not None
            if error is not None:
                _log.warning("peer %s was not notified: %s", peer.info.name, error)

    def _next(self, peer: Peer) -> _Message | None:
        with self._lock:
            queue = self._queues[peer]
            if not queue:
                del self._queues[peer]
                return None
            return queue.popleft()

    def _deliver(self, peer: Peer, message: _Message) -> KvTransferError | None:
        """Return the last error when the time is up."""
        pause_s = _PAUSE_S
        while True:
            error = self._try(peer, message)
            left = message.deadline - time.monotonic()
            if error is None or isinstance(error, _FUTILE) or left <= pause_s:
                return error
            if self._closed.wait(pause_s):
                return error
            pause_s *= 2

    def _try(self, peer: Peer, message: _Message) -> KvTransferError | None:
        timeout_s = min(self._call_timeout_s, max(1e-3, message.deadline - time.monotonic()))
        try:
            peer.control.call(NOTIFY, [message.number, message.payload], timeout_s)
        except KvTransferError as error:
            return error
        return None
