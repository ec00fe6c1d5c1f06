"""The calls under way on one connection to a peer.

No thread only reads: of those who wait for answers, one reads for all and hands the role on when it
has its own. So a lone caller gets its answer without a change of threads. A watcher, which data
never wakes, notices when the connection ends. Answers that come after their deadline are read by a
thread of their own when nobody else reads: the peer must not take us for one who reads no more.
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

_LAST_ANSWERS_S = 1.0  # to read what a peer that has left had sent


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
        """Take over the channel; RuntimeError when no thread can be started."""
        self._channel = channel
        self._peer = peer
        self._max_bytes = max_frame_bytes
        self._on_lost = on_lost
        self._reader = frames.FrameReader(max_frame_bytes)
        self._ids = itertools.count()
        self._waiting: dict[int, _Call] = {}
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._owed = 0  # answers that are still to come, and nobody waits for
        self._draining = False
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
        call, in_time = _Call(next(self._ids)), True
        frame = frames.encode([call.id, operation, payload, wants_fds], self._max_bytes)
        self._enter(call)
        try:
            self._channel.send(frame, deadline)
            call.sent = True
            self._await(call, deadline)
        except TimeoutError as error:
            if error.errno is not None:  # the kernel's: the peer's host does not answer
                self._fail_by(error)
            else:
                in_time = False
        except (OSError, MalformedMessage) as error:
            self._fail_by(error)
        finally:
            self._leave(call)
        if not call.done or (not in_time and call.error is not None):
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
            given_up = self._waiting.pop(call.id, None) is not None
            self._owed += given_up and call.sent
        self._pass_on()

    def _await(self, call: _Call, deadline: float) -> None:
        while not call.done:
            if self._reading.acquire(blocking=False):
                try:
                    self._read_while(lambda: not call.done, deadline)
                finally:
                    self._reading.release()
            elif not call.wake.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise TimeoutError

    def _read_while(self, needed: Callable[[], bool], deadline: float | None) -> None:
        while needed() and self._lost is None:
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
            if call is None:  # it comes after its deadline
                self._owed = max(0, self._owed - 1)
            else:
                call.value, call.error, call.done = value, error, True
                call.fds, fds = ([], fds) if error is not None else (fds, [])
                _wake(call)
        for fd in fds:  # nobody gets them
            os.close(fd)

    def _pass_on(self) -> None:
        """Find another reader, unless one has begun by itself; whoever ends as one asks for it."""
        if not (self._waiting or self._owed) or self._reading.locked():
            return
        with self._lock:
            # The one who waits longest. Who still sends cannot, and looks for itself afterwards.
            call = next((each for each in self._waiting.values() if each.sent), None)
            if call is not None:
                _wake(call)
            elif self._owed and self._lost is None and not self._draining:
                self._draining = self._start(self._drain)

    def _drain(self) -> None:
        """Read late answers, and on the side those of new callers, until none is owed."""
        try:
            with self._reading:
                self._read_while(lambda: self._owed > 0, None)
        except (OSError, MalformedMessage) as error:
            self._fail_by(error)
        with self._lock:
            self._draining = False
        self._pass_on()

    def _start(self, run: Callable[[], None]) -> bool:
        try:
            threading.Thread(target=run, name=f"control-late-{self._peer}", daemon=True).start()
        except RuntimeError:  # no thread can be started; the next caller reads
            return False
        return True

    def _fail(self, reason: str) -> None:
        with self._lock:
            if self._lost is None:
                self._lost = self._channel.cut or reason
            for call in self._waiting.values():
                call.error, call.done = PeerLost(self._peer, self._lost), True
                _wake(call)
            self._waiting.clear()
        self._channel.shutdown()

    def _fail_by(self, error: OSError | MalformedMessage) -> None:
        if isinstance(error, MalformedMessage):
            self._fail(f"its answer breaks the format ({error})")
        else:
            self._fail(error.strerror or str(error) or type(error).__name__)

    def _watch(self) -> None:
        """Sleep until either side ends the connection; then everybody learns it at once."""
        try:
            wait_for(self._channel.socket, select.POLLRDHUP, None)
            with self._reading:  # the answers that it gave before it left still count
                self._read_while(lambda: True, time.monotonic() + _LAST_ANSWERS_S)
        except (OSError, MalformedMessage) as error:
            self._fail_by(error)
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
