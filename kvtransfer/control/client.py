"""The way to one peer: connects when it is needed, and again when the connection was lost."""

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import closing

from stafette.kvtransfer.control.auth import MAX_PURPOSE_BYTES, Identity
from stafette.kvtransfer.control.calls import Calls
from stafette.kvtransfer.control.channel import Channel, FdChannel, TlsChannel
from stafette.kvtransfer.control.config import ControlConfig
from stafette.kvtransfer.control.counters import Counters, Tally
from stafette.kvtransfer.control.endpoint import dial_tcp, dial_unix, endpoint_of
from stafette.kvtransfer.control.handshake import CALLS, Party, greet
from stafette.kvtransfer.control.serving import MAX_OPERATION_BYTES
from stafette.kvtransfer.errors import (
    AuthFailed,
    InvalidValue,
    MalformedMessage,
    PeerLost,
    TransferError,
    TransferTimedOut,
    TransportUnavailable,
)
from stafette.kvtransfer.transport import PeerControl, PeerInfo

_CLOSED = "the way to it was closed here"
_LONGEST_TIMEOUT_S = 1e6
_REFUSED_CERTIFICATE = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED")  # in the names of TLS alerts


class ControlClient(PeerControl):
    """Talks with one life of a peer. Any number of threads may call at the same time.

    After a connection that failed, calls fail at once for a moment (`backoff_s`), then the next one
    tries again: a dead peer costs little, and one that comes back is found.
    """

    def __init__(
        self,
        config: ControlConfig,
        identity: Callable[[], Identity],
        peer: PeerInfo,
        on_lost: Callable[[PeerInfo], None] = lambda peer: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.peer = peer
        self._config = config
        self._identity = identity
        self._on_lost = on_lost
        self._clock = clock
        self._endpoint = endpoint_of(peer)
        self._tally = Tally()
        self._connecting = threading.Lock()
        self._calls: Calls | None = None
        self._closed = False
        self._failed: TransferError | None = None  # how the last attempt to connect ended
        self._failed_at = 0.0
        self._backoff_s = config.backoff_s

    def call(self, operation: str, payload: object, timeout_s: float) -> object:
        answer, fds = self._call(operation, payload, False, timeout_s)
        for fd in fds:  # nobody asked for them
            os.close(fd)
        return answer

    def call_fds(
        self, operation: str, payload: object, timeout_s: float
    ) -> tuple[object, list[int]]:
        return self._call(operation, payload, True, timeout_s)

    def dial(self, purpose: str, timeout_s: float) -> socket.socket:
        """Return a connection over TCP, an `ssl.SSLSocket` where the config has TLS."""
        if purpose == CALLS or not 0 < len(purpose.encode()) <= MAX_PURPOSE_BYTES:
            remedy = f"must have 1..{MAX_PURPOSE_BYTES} bytes, and not be {CALLS!r}"
            raise InvalidValue("purpose", purpose, remedy)
        deadline = self._deadline("connecting", timeout_s)
        if self._closed:
            raise PeerLost(self.peer.name, _CLOSED)
        return self._open(deadline, timeout_s, purpose).detach()

    def connect(self, timeout_s: float) -> None:
        """Find out now whether the peer is there; calls do so by themselves."""
        self._connected(self._deadline("connecting", timeout_s), timeout_s)

    def counters(self) -> Counters:
        return self._tally.read()

    def close(self) -> None:
        """End every call with PeerLost, and connect no more. Safe to call twice."""
        self._closed = True
        with self._connecting:
            calls = self._calls
        if calls is not None:
            calls.close(self._config.close_timeout_s)

    def _call(
        self, operation: str, payload: object, wants_fds: bool, timeout_s: float
    ) -> tuple[object, list[int]]:
        if not operation or len(operation.encode()) > MAX_OPERATION_BYTES:
            remedy = f"must have 1..{MAX_OPERATION_BYTES} bytes"
            raise InvalidValue("operation", operation, remedy)
        deadline = self._deadline(operation, timeout_s)
        calls = self._calls
        if calls is None or calls.lost:
            calls = self._connected(deadline, timeout_s)
            timeout_s = deadline - time.monotonic()
        if wants_fds and not calls.carries_fds:
            reason = "file descriptors need a Unix socket, and it is reached by TCP"
            raise TransportUnavailable(operation, self.peer.name, reason)
        return calls.call(operation, payload, wants_fds, timeout_s)

    def _deadline(self, doing: str, timeout_s: float) -> float:
        if not timeout_s <= _LONGEST_TIMEOUT_S:
            remedy = f"must be at most {_LONGEST_TIMEOUT_S:g}"
            raise InvalidValue("timeout_s", timeout_s, remedy)
        if timeout_s <= 0:  # what was left of a caller's own deadline: ask nothing any more
            raise TransferTimedOut(self.peer.name, doing, timeout_s)
        return time.monotonic() + timeout_s

    def _connected(self, deadline: float, timeout_s: float) -> Calls:
        if not self._connecting.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise TransferTimedOut(self.peer.name, "connecting", timeout_s)
        try:
            if self._calls is None or self._calls.lost:
                self._calls = self._connect(deadline, timeout_s)
            return self._calls
        finally:
            self._connecting.release()

    def _connect(self, deadline: float, timeout_s: float) -> Calls:
        """The connecting lock is held."""
        if self._closed:
            raise PeerLost(self.peer.name, _CLOSED)
        if self._failed is not None and self._clock() < self._failed_at + self._backoff_s:
            raise type(self._failed)(*self._failed.args)
        try:
            channel = self._open(deadline, timeout_s, CALLS)
            calls = self._take_up(channel)
        except TransferError as error:
            self._rest(error)
            raise
        self._failed, self._backoff_s = None, self._config.backoff_s
        self._tally.connected()
        return calls

    def _take_up(self, channel: Channel) -> Calls:
        try:
            return Calls(channel, self.peer.name, self._config.max_frame_bytes, self._tell_lost)
        except RuntimeError as error:
            channel.close()
            raise PeerLost(self.peer.name, f"no thread for its connection ({error})") from error

    def _rest(self, error: TransferError) -> None:
        if self._failed is not None:
            self._backoff_s = min(2 * self._backoff_s, self._config.max_backoff_s)
        self._failed, self._failed_at = error, self._clock()
        self._tally.refused(type(error).__name__)

    def _tell_lost(self) -> None:
        self._tally.raised(PeerLost.__name__)
        self._on_lost(self.peer)

    def _open(self, deadline: float, timeout_s: float, purpose: str) -> Channel:
        """Return a channel after the handshake; whatever goes wrong is a TransferError."""
        name = self.peer.name
        limit = min(deadline, time.monotonic() + self._config.handshake_timeout_s)
        try:
            return self._shake_hands(limit, purpose)
        except ssl.SSLCertVerificationError as error:
            raise AuthFailed(name, f"certificate: {error.verify_message}") from error
        except ssl.SSLError as error:
            alert = getattr(error, "reason", None) or ""  # only OpenSSL's own errors have one
            if any(part in alert for part in _REFUSED_CERTIFICATE):
                raise AuthFailed(name, f"it refuses our certificate ({alert})") from error
            raise PeerLost(name, f"no TLS with it ({error})") from error
        except TimeoutError as error:
            raise TransferTimedOut(name, "connecting", timeout_s) from error
        except MalformedMessage as error:
            self._tally.malformed()
            raise PeerLost(name, f"it does not speak our protocol ({error})") from error
        except OSError as error:
            raise PeerLost(name, f"no connection ({error.strerror or error})") from error

    def _shake_hands(self, deadline: float, purpose: str) -> Channel:
        us = Party(self._config, self._identity())
        if purpose == CALLS and us.identity.peer.host_id == self.peer.host_id:
            channel = self._reach_unix(us, deadline)
            if channel is not None:
                return channel
        channel = self._wrap(dial_tcp(self._endpoint, deadline))
        self._greet(channel, us, purpose, deadline)
        return channel

    def _reach_unix(self, us: Party, deadline: float) -> Channel | None:
        """Return None where the peer does not answer, or not us: it may still do so by TCP."""
        try:
            channel = FdChannel(dial_unix(self._endpoint, deadline))
            self._greet(channel, us, CALLS, deadline)
        except TimeoutError:
            raise
        except OSError:
            return None
        return channel

    def _wrap(self, connection: socket.socket) -> Channel:
        if self._config.tls_client is None:
            return Channel(connection)
        try:
            tls = self._config.tls_client.wrap_socket(
                connection, do_handshake_on_connect=False, server_hostname=self._endpoint.host
            )
        except (OSError, ValueError) as error:  # ValueError: what is no host name
            connection.close()
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, str(error)) from error
        return TlsChannel(tls)

    def _greet(self, channel: Channel, us: Party, purpose: str, deadline: float) -> None:
        try:
            channel.handshake(deadline)
            greet(channel, us, self.peer, purpose, deadline)
        except (ssl.SSLEOFError, ConnectionError):
            with closing(channel):
                channel.raise_alert()
            raise
        except BaseException:
            channel.close()
            raise
