"""The calls under way on one connection to a peer.

No thread only reads: of those who wait for answers, one reads for all and hands the role on when it
has its own. So a lone caller gets its answer without a change of threads. A watcher, which data
never wakes, notices when the connection ends.
"""

import itertools
import logging
import os
import select
import threading
import time
from collections.abc import Callable

from stafette.kvtransfer.control import frames
from stafette.kvtransfer.control.channel import MAX_FDS, RECV_BYTES, Channel, FdChannel, wait_for
from stafette.kvtransfer.control.remote_errors import read_error
from stafette.kvtransfer.control.serving import ANSWERED, MAX_CALL_ID, RAISED
from stafette.kvtransfer.errors import (
    KvTransferError,
    MalformedMessage,
    PeerLost,
    TransferTimedOut,
)
from stafette.kvtransfer.strict import unpack, whole

_log = logging.getLogger(__name__)


class _Call:
    """One question. Its lock is held until there is something to do for whoever waits."""

    __slots__ = ("id", "sent", "done", "value", "fds", "error", "wake")

    def __init__(self, call_id: int) -> None:
        self.id = call_id
        self.sent = False
        self.done = False
        self.value: object = None
        self.fds: list[int] = []
        self.error: KvTransferError | None = None
        self.wake = threading.Lock()
        self.wake.acquire()


class Calls:
    """`on_lost` is called once, in the watcher's thread, when the connection ends by itself."""

    def __init__(
        self, channel: Channel, peer: str, max_frame_bytes: int, on_lost: Callable[[], None]
    ) -> None:
        self._channel = channel
        self._peer = peer
        self._max_bytes = max_frame_bytes
        self._on_lost = on_lost
        self._reader = frames.FrameReader(max_frame_bytes)
        self._ids = itertools.count()
        self._waiting: dict[int, _Call] = {}
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._lost: str | None = None  # why
        self._closed_here = False
        self._watcher = threading.Thread(target=self._watch, name=f"control-{peer}", daemon=True)
        self._watcher.start()

    @property
    def lost(self) -> bool:
        return self._lost is not None

    @property
    def carries_fds(self) -> bool:
        return isinstance(self._channel, FdChannel)

    def call(
        self, operation: str, payload: object, wants_fds: bool, timeout_s: float
    ) -> tuple[object, list[int]]:
        """Ask, and return the answer; PeerLost, TransferTimedOut or the peer's typed error."""
        deadline = time.monotonic() + timeout_s
        call = _Call(next(self._ids))
        frame = frames.encode([call.id, operation, payload, wants_fds], self._max_bytes)
        self._enter(call)
        try:
            self._channel.send(frame, deadline)
            call.sent = True
            self._await(call, deadline)
        except OSError as error:
            if not isinstance(error, TimeoutError) or error.errno is not None:
                self._fail(_told(error))
        except MalformedMessage as error:
            self._fail(f"its answer breaks the format ({error})")
        finally:
            self._leave(call)
        if not call.done:
            raise TransferTimedOut(self._peer, operation, timeout_s)
        if call.error is not None:
            raise call.error
        return call.value, call.fds

    def close(self, timeout_s: float) -> None:
        """End every call with PeerLost. Safe to call twice."""
        self._closed_here = True
        self._fail("the connection to it was closed here")
        if threading.current_thread() is not self._watcher:
            self._watcher.join(timeout_s)

    def _enter(self, call: _Call) -> None:
        with self._lock:
            if self._lost is not None:
                raise PeerLost(self._peer, self._lost)
            self._waiting[call.id] = call

    def _leave(self, call: _Call) -> None:
        with self._lock:
            self._waiting.pop(call.id, None)
        if self._waiting and not self._reading.locked():
            self._hand_on()

    def _await(self, call: _Call, deadline: float) -> None:
        while not call.done:
            if self._reading.acquire(blocking=False):
                try:
                    self._read_until(call, deadline)
                finally:
                    self._reading.release()
            elif not call.wake.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise TimeoutError

    def _read_until(self, call: _Call, deadline: float) -> None:
        while not call.done:
            if self._lost is not None:
                return
            data = self._channel.recv(RECV_BYTES, deadline)
            if not data:
                raise ConnectionResetError("it closed the connection")
            for body in self._reader.feed(data):
                self._deliver(body)

    def _deliver(self, body: bytes) -> None:
        match unpack(body, self._max_bytes):
            case [call_id, how, value, num_fds] if how in (ANSWERED, RAISED):
                number = whole(call_id, "call id", MAX_CALL_ID)
                error = read_error(value) if how == RAISED else None
                fds = self._channel.take_fds(whole(num_fds, "file descriptors", MAX_FDS + 1))
                self._settle(number, value, error, fds)
            case _:
                raise MalformedMessage("answer", "[id, how, value, file descriptors]")

    def _settle(
        self, call_id: int, value: object, error: KvTransferError | None, fds: list[int]
    ) -> None:
        with self._lock:
            call = self._waiting.pop(call_id, None)
            if call is not None:
                call.value, call.error, call.fds, call.done = value, error, fds, True
                _wake(call)
        if call is None:  # it came after its deadline
            for fd in fds:
                os.close(fd)

    def _hand_on(self) -> None:
        """Wake the one who waits longest: nobody reads. Who still sends cannot."""
        with self._lock:
            call = next((each for each in self._waiting.values() if each.sent), None)
            if call is not None:
                _wake(call)

    def _fail(self, reason: str) -> None:
        with self._lock:
            if self._lost is None:
                self._lost = reason
            for call in self._waiting.values():
                call.error, call.done = PeerLost(self._peer, self._lost), True
                _wake(call)
            self._waiting.clear()
        self._channel.shutdown()

    def _watch(self) -> None:
        """Sleep until either side ends the connection; then everybody learns it at once."""
        try:
            wait_for(self._channel.socket, select.POLLRDHUP, None)
        except OSError as error:
            self._fail(_told(error))
        self._fail("it closed the connection")
        with self._reading:  # whoever reads has left when this is ours
            self._channel.close()
        if not self._closed_here:
            self._tell()

    def _tell(self) -> None:
        try:
            self._on_lost()
        except Exception:  # the caller's code
            _log.exception("the callback for the loss of %s failed", self._peer)


def _wake(call: _Call) -> None:
    """The books' lock is held: nobody else wakes it meanwhile."""
    if call.wake.locked():
        call.wake.release()


def _told(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
