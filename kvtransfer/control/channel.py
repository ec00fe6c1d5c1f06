"""Connected sockets with absolute deadlines: one thread reads, any number write.

A socket may be shut down by anyone, which wakes whoever waits on it. It is closed when nobody is
inside, so that its number is never used for another file.
"""

import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import ceil
from typing import TypeVar

from stafette.kvtransfer.errors import MalformedMessage

RECV_BYTES = 64 << 10
MAX_FDS = 16  # of one frame
_ANCILLARY_FDS = 253  # the kernel's limit of one message
_TLS_PIECE_BYTES = 64 << 10  # what is sent before others may use the connection
_LONGEST_POLL_MS = (1 << 31) - 1

Value = TypeVar("Value")


class Channel:
    """A plain stream socket, in blocking mode. File descriptors that arrive here are dropped."""

    binding = b""  # what ties a proof to this very connection
    cut = ""  # why it was ended from within, if it was

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._sending = threading.Lock()
        self._ending = threading.Lock()  # taken after the other one
        self._closed = False  # or somebody else's by now

    def handshake(self, deadline: float) -> None:
        """Do what comes before the first byte of ours."""

    def raise_alert(self) -> None:
        """Raise what the other side gave as a reason before it left; nothing is read after this."""

    def recv(self, max_bytes: int, deadline: float | None) -> bytes:
        """Return some bytes, none at the end of the stream. Only one thread may read."""
        if deadline is not None:
            wait_for(self.socket, select.POLLIN, deadline)
        return self.socket.recv(max_bytes)

    def recv_exactly(self, num_bytes: int, deadline: float) -> bytes:
        parts = []
        while num_bytes:
            part = self.recv(num_bytes, deadline)
            if not part:
                raise ConnectionResetError("it closed the connection")
            parts.append(part)
            num_bytes -= len(part)
        return b"".join(parts)

    def send(self, data: bytes, deadline: float, fds: Sequence[int] = ()) -> None:
        """Send all of it. What was sent in part ends the connection: nobody could go on."""
        if not self._sending.acquire(blocking=False):
            if not self._sending.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise TimeoutError
        try:
            self._send(data, deadline, fds)
        finally:
            self._sending.release()

    def send_within(self, data: bytes, timeout_s: float, fds: Sequence[int] = ()) -> None:
        """Send all of it; the time counts from when those who came before are done."""
        with self._sending:
            self._send(data, time.monotonic() + timeout_s, fds)

    def shutdown(self) -> None:
        """End the connection for both sides; everybody who waits on it is woken."""
        with self._ending:
            if not self._closed:
                self._shutdown()

    def close(self) -> None:
        """Give the socket back; whoever reads has left. Safe to call twice."""
        self.shutdown()
        with self._sending, self._ending:
            if not self._closed:
                self._closed = True
                self.socket.close()

    def detach(self) -> socket.socket:
        """Return the socket, blocking; this channel touches it no more."""
        with self._sending, self._ending:
            self._closed = True
            self.socket.settimeout(None)
        return self.socket

    def take_fds(self, count: int) -> list[int]:
        """Return the descriptors that came with the next frame."""
        if count:
            raise MalformedMessage("file descriptors", f"{count} of them on a Unix socket")
        return []

    def _send(self, data: bytes, deadline: float, fds: Sequence[int]) -> None:
        if self._closed:
            raise BrokenPipeError("the connection is closed")
        view, sent = memoryview(data), 0
        try:
            while sent < len(view):
                sent += self._send_some(view[sent:], deadline, () if sent else fds)
        except BaseException:
            if sent:
                self._cut()
            raise

    def _send_some(self, data: memoryview, deadline: float, fds: Sequence[int]) -> int:
        while True:
            try:
                if fds:
                    return socket.send_fds(self.socket, [data], list(fds), socket.MSG_DONTWAIT)
                return self.socket.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                wait_for(self.socket, select.POLLOUT, deadline)

    def _cut(self) -> None:
        self.cut = self.cut or "a message to it was sent only in part"
        self.shutdown()

    def _shutdown(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class FdChannel(Channel):
    """A Unix socket on which file descriptors arrive. They come no later than their frame."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        self._fds: deque[int] = deque()

    def recv(self, max_bytes: int, deadline: float | None) -> bytes:
        if deadline is not None:
            wait_for(self.socket, select.POLLIN, deadline)
        data, fds, flags, _ = socket.recv_fds(
            self.socket, max_bytes, _ANCILLARY_FDS, socket.MSG_CMSG_CLOEXEC
        )
        self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC or len(self._fds) > _ANCILLARY_FDS:
            raise MalformedMessage("file descriptors", f"at most {MAX_FDS} of them a frame")
        return data

    def take_fds(self, count: int) -> list[int]:
        if count > len(self._fds):
            raise MalformedMessage("file descriptors", f"{count}, not {len(self._fds)}")
        return [self._fds.popleft() for _ in range(count)]

    def close(self) -> None:
        super().close()
        while self._fds:
            os.close(self._fds.popleft())


class TlsChannel(Channel):
    """TLS. OpenSSL wants one thread at a time, so the socket never blocks inside of it.

    The binding is the client's Finished message, a MAC over the whole TLS handshake, certificates
    and keys included. A man in the middle has another handshake with either side, hence another
    Finished: the proofs that he relays are worth nothing, whatever certificate he has. Python calls
    it "tls-unique", which RFC 5929 defines up to TLS 1.2. There, the Finished of a resumed session
    can be made equal on both sides (3SHAKE), and it has only 96 bits. In TLS 1.3 it has 256 or
    more, and depends on all of the handshake; so nothing older and nothing resumed is accepted. RFC
    9266's exporter, the name for TLS 1.3, needs a call that Python's ssl lacks (gh-82133), and the
    certificate's hash (tls-server-end-point) would not betray a stolen key.
    """

    def __init__(self, connection: ssl.SSLSocket) -> None:
        super().__init__(connection)
        connection.setblocking(False)
        self._tls = connection
        self._using = threading.Lock()

    def handshake(self, deadline: float) -> None:
        self._drive(self._tls.do_handshake, deadline)
        if self._tls.version() != "TLSv1.3" or self._tls.session_reused:
            found = self._tls.version()
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, f"not a new session of TLS 1.3, but of {found}")
        self.binding = self._finished()

    def recv(self, max_bytes: int, deadline: float | None) -> bytes:
        return self._drive(lambda: self._tls.recv(max_bytes), deadline)

    def raise_alert(self) -> None:
        try:
            with self._using:
                self._tls.recv(1)
        except (ssl.SSLWantReadError, ssl.SSLEOFError, ConnectionError):
            return  # it has given none

    def _finished(self) -> bytes:
        try:
            finished = self._tls.get_channel_binding("tls-unique")
        except ValueError:  # a Python that knows it no more
            finished = None
        if not finished:
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, "this Python does not tell a session's Finished")
        return finished

    def _send(self, data: bytes, deadline: float, fds: Sequence[int]) -> None:
        try:
            super()._send(data, deadline, fds)
        except BaseException:  # OpenSSL may have sent a part that it did not count
            self._cut()
            raise

    def _send_some(self, data: memoryview, deadline: float, fds: Sequence[int]) -> int:
        return self._drive(lambda: self._tls.send(data[:_TLS_PIECE_BYTES]), deadline)

    def _shutdown(self) -> None:
        # SSLSocket's own would forget the TLS session at once, under whoever reads or sends: they
        # would see, or say, bytes that are not encrypted.
        with suppress(OSError):
            socket.socket.shutdown(self._tls, socket.SHUT_RDWR)

    def _drive(self, step: Callable[[], Value], deadline: float | None) -> Value:
        while True:
            try:
                with self._using:
                    return step()
            except ssl.SSLWantReadError:
                wait_for(self.socket, select.POLLIN, deadline)
            except ssl.SSLWantWriteError:
                wait_for(self.socket, select.POLLOUT, deadline)


def wait_for(connection: socket.socket, events: int, deadline: float | None) -> None:
    """Return when one of the events is there; raise TimeoutError at the deadline."""
    poll = select.poll()
    poll.register(connection.fileno(), events)
    if deadline is None:
        poll.poll()
        return
    left_ms = ceil((deadline - time.monotonic()) * 1_000)
    if not poll.poll(min(max(0, left_ms), _LONGEST_POLL_MS)):
        raise TimeoutError
