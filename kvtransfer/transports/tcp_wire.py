"""A connection of the TCP transport: frames go by between its socket and memory.

No call waits inside of the socket, so a thread that waits can always be woken: by its wake fd, or
when the socket is shut down. One thread receives; `send_now` may be called by others meanwhile.
"""

import ctypes
import math
import os
import select
import socket
import ssl
import threading
import time
from contextlib import suppress
from enum import IntEnum

from stafette.kvtransfer.native import sockets
from stafette.kvtransfer.transports.tcp_flow import Flow
from stafette.kvtransfer.transports.tcp_frames import CARRIES_BYTES, DATA, HEADER_BYTES, Header
from stafette.kvtransfer.transports.tcp_ranges import MAX_VECTORS, Ranges

RECV_BYTES = 64 << 10
_SLICE_MS = 20  # after that long a loop returns, also when nothing else is to be done
_TLS_RECORD_BYTES = 16 << 10
_LONGEST_S = 86_400.0
_CLOSED = "it closed the connection"


class Outcome(IntEnum):
    """Why a loop has returned; as in sockets.cpp."""

    DONE = 0
    FRAME = 1  # the header of something else has come
    PAUSED = 2  # the time is over, or the peer says something
    STOPPED = 3
    WOKEN = 4  # by the wake fd, or the socket takes something again
    TIMED_OUT = 5
    CLOSED = 6
    WHOLE = 7  # the answer to a job has come, all of it in one frame


_OUTCOMES = tuple(Outcome)


class Incoming(ctypes.Structure):
    """What has come of the current frame; native loops use the same structure."""

    fd: int
    header_bytes: int
    frame_left: int
    ask_us: int

    _fields_ = [
        ("fd", ctypes.c_int32),
        ("wake_fd", ctypes.c_int32),
        ("header_bytes", ctypes.c_uint32),
        ("frame_left", ctypes.c_uint32),
        ("ask_us", ctypes.c_int32),
        ("unused", ctypes.c_uint32),
        ("header", ctypes.c_uint8 * HEADER_BYTES),
    ]


class Wire:
    """A plain socket, by Python's own calls."""

    native = False  # whether native code may use the socket as it is

    def __init__(self, connection: socket.socket, wake_fd: int = -1) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._in = Incoming(connection.fileno(), wake_fd, 0, 0)
        self._header = memoryview(self._in.header).cast("B")
        self._wants_to_send = False  # before it can receive, as TLS may
        self._ready = select.poll()
        self._ready.register(connection, select.POLLIN)
        self._woken = select.poll()
        for fd in (connection.fileno(), wake_fd):
            if fd >= 0:
                self._woken.register(fd, select.POLLIN)

    # Both sides

    def send_now(self, data: bytes | memoryview) -> int:
        """Return how many bytes could be sent at once, from the front."""
        try:
            return self._socket.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0

    def send_all(self, data: bytes, timeout_s: float) -> None:
        """Send it; TimeoutError when the peer does not take it in time."""
        deadline = time.monotonic() + timeout_s
        rest = memoryview(data)
        while rest:
            sent = self.send_now(rest)
            rest = rest[sent:]
            if rest and not sent:
                self._await_room(deadline)

    def shutdown(self) -> None:
        """End the connection; whoever waits on it is woken."""
        with suppress(OSError):  # not SSLSocket's own, which forgets the encryption
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self.shutdown()
        self._socket.close()

    # The owner's side

    def recv(self) -> bytes | None:
        """Return some bytes, none at the end of the stream; None when nothing is there."""
        try:
            return self._socket.recv(RECV_BYTES)
        except BlockingIOError:
            return None

    def await_input(self, timeout_s: float | None) -> bool:
        """Return whether there is something to receive, or the end."""
        return self._await(select.POLLIN, timeout_s)

    def send_frames(self, flow: Flow, frame_bytes: int, timeout_s: float, alone: bool) -> None:
        """Send a job's next frame; when it is alone, more of them until the peer says something.

        TimeoutError when the peer does not take a frame in time: it has got a part of it.
        """
        ranges = flow.ranges
        size = min(frame_bytes, ranges.left)
        deadline = time.monotonic() + timeout_s
        last = size == ranges.left  # what closes the job follows at once
        header = memoryview(Header(DATA, size, flow.number).pack())
        while header or size:
            views = [header, *ranges.views(size)] if header else ranges.views(size)
            sent = self._send(views[:MAX_VECTORS], last)
            if sent is None:
                self._await_room(deadline)
                continue
            of_header = min(sent, len(header))
            header = header[of_header:]
            ranges.advance(sent - of_header)
            size -= sent - of_header

    # The reader's side

    def ask_for(self, seconds: float) -> None:
        """Ask for a header again and again for so long, from now on, before a thread sleeps."""
        self._in.ask_us = int(seconds * 1e6)

    @property
    def fd(self) -> int:
        return self._in.fd

    @property
    def holds_back(self) -> bool:
        """Whether something has come that no poll of the socket tells."""
        return False

    @property
    def has_header(self) -> bool:
        """Whether a header has come that was not taken."""
        return self._in.header_bytes == HEADER_BYTES

    @property
    def frame_left(self) -> int:
        """How many bytes of the current frame are still to be received."""
        return self._in.frame_left

    def take_header(self) -> Header:
        """Return the header that has come. The bytes of a job that follow it are received next."""
        header = Header.read(bytes(self._header))
        self._in.header_bytes = 0
        self._in.frame_left = header.num_bytes if header.kind in CARRIES_BYTES else 0
        return header

    def receive(
        self, flow: Flow | None, wants_to_send: bool = False, timeout_s: float | None = None
    ) -> Outcome:
        """Receive the rest of a job's frame, perhaps its next ones too, until another header comes.

        Without a flow, wait for a header: no frame is under way then.
        """
        while self._in.frame_left:
            assert flow is not None, "somebody must take the bytes of a frame"
            if flow.stop.value:
                return Outcome.STOPPED
            outcome = self._receive_into(flow.ranges, wants_to_send, timeout_s)
            if outcome is not Outcome.DONE:
                return outcome
        if flow is not None:
            return Outcome.PAUSED
        while (got := self._in.header_bytes) < HEADER_BYTES:
            more = self._recv_into([self._header[got:]])
            self._in.header_bytes += more or 0
            outcome = self._after(more, wants_to_send, timeout_s)
            if outcome is not Outcome.DONE:
                return outcome
        return Outcome.FRAME

    def receive_answer(self, flow: Flow, wants_to_send: bool, timeout_s: float) -> Outcome:
        """Wait for a job's answer, of which nothing has come; WHOLE when it was a single frame.

        Only where the wire is native. Other frames are left alone. What is whole leaves a header
        to `forget_header`, what has begun one to `begun_answer`.
        """
        raise NotImplementedError

    def begun_answer(self) -> Header:
        """Take the header of an answer whose bytes have begun to come."""
        header = Header.read(bytes(self._header))
        self.forget_header()
        return header

    def forget_header(self) -> None:
        """The header that has come is known."""
        self._in.header_bytes = 0

    def receive_body(self, num_bytes: int, timeout_s: float) -> bytes:
        """Return what follows another header; the two were sent together."""
        deadline = time.monotonic() + timeout_s
        body = bytearray(num_bytes)
        rest = memoryview(body)
        while rest:
            got = self._recv_into([rest])
            if got == 0:
                raise ConnectionResetError(_CLOSED)
            if got is None and not self._await(select.POLLIN, deadline - time.monotonic()):
                raise TimeoutError("the rest of a frame did not come")
            rest = rest[got or 0 :]
        return bytes(body)

    def _receive_into(self, into: Ranges, wants_to_send: bool, timeout_s: float | None) -> Outcome:
        got = self._recv_into(into.views(self._in.frame_left))
        into.advance(got or 0)
        self._in.frame_left -= got or 0
        return self._after(got, wants_to_send, timeout_s)

    def _after(self, got: int | None, wants_to_send: bool, timeout_s: float | None) -> Outcome:
        """Wait when nothing was there; DONE says that something may be there now."""
        if got:
            return Outcome.DONE
        if got is not None:
            raise ConnectionResetError(_CLOSED)
        sending = wants_to_send or self._wants_to_send
        self._woken.modify(self._in.fd, select.POLLIN | (select.POLLOUT if sending else 0))
        found = dict(self._woken.poll(_milliseconds(timeout_s)))
        if not found:
            return Outcome.TIMED_OUT
        elsewhere = self._in.wake_fd in found or found[self._in.fd] & select.POLLOUT
        return Outcome.WOKEN if elsewhere else Outcome.DONE

    def _await_room(self, deadline: float) -> None:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not self._await(select.POLLOUT, left_s):
            raise TimeoutError("it takes no bytes")

    def _await(self, events: int, timeout_s: float | None) -> bool:
        """Wait for the socket alone."""
        self._ready.modify(self._in.fd, events)
        return bool(self._ready.poll(_milliseconds(timeout_s)))

    def _send(self, views: list[memoryview], more: bool) -> int | None:
        """Return how many bytes the socket has taken, None when it takes none now."""
        flags = socket.MSG_NOSIGNAL | (socket.MSG_MORE if more else 0)
        try:
            return self._socket.sendmsg(views, (), flags)
        except BlockingIOError:
            return None

    def _recv_into(self, views: list[memoryview]) -> int | None:
        """Return how many bytes have come, 0 at the end; None when nothing is there now."""
        try:
            return self._socket.recvmsg_into(views)[0]
        except BlockingIOError:
            return None


class NativeWire(Wire):
    """A plain socket whose bulk is moved by native loops, without the interpreter's lock."""

    native = True

    def __init__(self, library: ctypes.CDLL, connection: socket.socket, wake_fd: int = -1) -> None:
        super().__init__(connection, wake_fd)
        self._run_receive = library.stafette_receive_2
        self._run_receive_answer = library.stafette_receive_answer_1
        self._run_send = library.stafette_send_1
        self._in_place = ctypes.byref(self._in)

    def send_frames(self, flow: Flow, frame_bytes: int, timeout_s: float, alone: bool) -> None:
        slice_ms = _SLICE_MS if alone and flow.digest is None else 0
        place, timeout_ms = ctypes.byref(flow.ranges), _milliseconds(timeout_s)
        code = self._run_send(self._in.fd, place, flow.number, frame_bytes, timeout_ms, slice_ms)
        if _outcome(code) is Outcome.TIMED_OUT:
            raise TimeoutError("it takes no bytes")

    def receive(
        self, flow: Flow | None, wants_to_send: bool = False, timeout_s: float | None = None
    ) -> Outcome:
        timeout_ms = _milliseconds(timeout_s)
        if flow is None:
            code = self._run_receive(self._in_place, None, 0, None, wants_to_send, timeout_ms, 0)
        else:
            ranges, stop = ctypes.byref(flow.ranges), ctypes.byref(flow.stop)
            slice_ms = _SLICE_MS if flow.digest is None else 0
            code = self._run_receive(
                self._in_place, ranges, flow.number, stop, wants_to_send, timeout_ms, slice_ms
            )
        return _outcome(code)

    def receive_answer(self, flow: Flow, wants_to_send: bool, timeout_s: float) -> Outcome:
        ranges, stop = ctypes.byref(flow.ranges), ctypes.byref(flow.stop)
        timeout_ms = _milliseconds(timeout_s)
        code = self._run_receive_answer(
            self._in_place, ranges, flow.number, stop, wants_to_send, timeout_ms
        )
        return _outcome(code)


class TlsWire(Wire):
    """TLS. OpenSSL wants one thread at a time; none waits inside of it."""

    def __init__(self, connection: ssl.SSLSocket, wake_fd: int = -1) -> None:
        super().__init__(connection, wake_fd)
        self._tls = connection
        self._using = threading.Lock()

    @property
    def holds_back(self) -> bool:
        with self._using:
            return self._tls.pending() > 0

    def send_now(self, data: bytes | memoryview) -> int:
        return self._send([memoryview(data)], more=False) or 0

    def recv(self) -> bytes | None:
        try:
            with self._using:
                return self._tls.recv(RECV_BYTES)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def _send(self, views: list[memoryview], more: bool) -> int | None:
        try:
            with self._using:
                return self._tls.send(_record(views))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def _recv_into(self, views: list[memoryview]) -> int | None:
        self._wants_to_send = False
        try:
            with self._using:
                return self._tls.recv_into(views[0])
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLWantWriteError:
            self._wants_to_send = True
            return None


def wire_of(connection: socket.socket, native: bool, wake_fd: int = -1) -> Wire:
    """Return the quickest wire that the connection can have."""
    if isinstance(connection, ssl.SSLSocket):
        return TlsWire(connection, wake_fd)
    library = sockets.load() if native else None
    if library is None:
        return Wire(connection, wake_fd)
    return NativeWire(library, connection, wake_fd)


def _outcome(code: int) -> Outcome:
    if code < 0:
        raise OSError(-code, os.strerror(-code))
    outcome = _OUTCOMES[code]
    if outcome is Outcome.CLOSED:
        raise ConnectionResetError(_CLOSED)
    return outcome


def _milliseconds(timeout_s: float | None) -> int:
    return -1 if timeout_s is None else math.ceil(min(max(0.0, timeout_s), _LONGEST_S) * 1_000)


def _record(views: list[memoryview]) -> bytes | memoryview:
    """Return what goes into one record: small pieces are joined."""
    if len(views[0]) >= _TLS_RECORD_BYTES or len(views) == 1:
        return views[0]
    pieces, size = [], 0
    for view in views:
        if size >= _TLS_RECORD_BYTES:
            break
        pieces.append(view[: _TLS_RECORD_BYTES - size])
        size += len(pieces[-1])
    return b"".join(pieces)
