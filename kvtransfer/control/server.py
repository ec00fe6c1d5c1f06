"""The listener of an agent: admits peers, answers their calls, hands their streams on."""

import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from stafette.kvtransfer.control.auth import Identity
from stafette.kvtransfer.control.channel import Channel, TlsChannel
from stafette.kvtransfer.control.config import ControlConfig
from stafette.kvtransfer.control.counters import Counters, Seldom, Tally
from stafette.kvtransfer.control.endpoint import (
    Endpoint,
    listen_tcp,
    listen_unix,
    prepare_tcp,
    same_user,
    unix_name,
)
from stafette.kvtransfer.control.handshake import CALLS, Admitted, Party, admit
from stafette.kvtransfer.control.serving import Desk, Serving, SlowOperation
from stafette.kvtransfer.control.slow_pool import SlowPool
from stafette.kvtransfer.errors import (
    AuthFailed,
    Incompatible,
    KvTransferError,
    MalformedMessage,
    StaleEpoch,
)
from stafette.kvtransfer.transport import Operation, PeerInfo

__all__ = ["ControlServer", "OnStream", "SlowOperation"]

_log = logging.getLogger(__name__)

OnStream = Callable[[str, socket.socket, PeerInfo], None]  # purpose, connection, who dialled

_ACCEPT_PAUSE_S = 0.1  # when no connection can be taken: file descriptors or memory are used up
_LOG_EVERY_S = 10.0  # a refusal for the same reason
_GONE = (BlockingIOError, ConnectionError)  # who knocked has left again
_REASONS: Mapping[type[Exception], str] = {  # the first that fits
    AuthFailed: "auth",
    Incompatible: "incompatible",
    MalformedMessage: "malformed",
    StaleEpoch: "stale",
    TimeoutError: "deadline",
    ssl.SSLError: "tls",
    OSError: "lost",
}
_TURNED_AWAY: Mapping[str, str] = {  # without a word
    "user": "the process belongs to another user",
    "busy": "too many connections have not proved anything yet",
    "lost": "it is gone again",
}


class _Listener:
    """A listening socket, and how many strangers may be at its door."""

    def __init__(self, listening: socket.socket, max_strangers: int) -> None:
        self.socket = listening
        self.places = threading.BoundedSemaphore(max_strangers)
        self.local = listening.family == socket.AF_UNIX


class ControlServer:
    """Listens from the start. `identity` is asked at every handshake, when `endpoint` is known.

    `on_stream` takes over the connections that were dialled for another purpose than calls, each in
    a thread of its own. `on_peer` hears of every peer before its first call is answered.
    """

    def __init__(
        self,
        config: ControlConfig,
        identity: Callable[[], Identity],
        operations: Mapping[str, Operation],
        on_stream: OnStream,
        on_peer: Callable[[Identity], None] | None = None,
    ) -> None:
        self._config = config
        self._identity = identity
        self._operations = dict(operations)
        self._on_stream = on_stream
        self._on_peer = on_peer
        self._tally = Tally()
        self._seldom = Seldom(_LOG_EVERY_S)
        self._pool = SlowPool(config.slow_threads)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._connections: dict[threading.Thread, Channel] = {}
        with ExitStack() as made:  # closed again when not all of it can be had
            self._tcp = _Listener(made.enter_context(listen_tcp(config)), config.max_strangers)
            self._unix = _Listener(made.enter_context(listen_unix()), config.max_strangers)
            self._wake, self._woken = map(made.enter_context, socket.socketpair())
            host, port = config.advertised_host or config.host, self._tcp.socket.getsockname()[1]
            self.endpoint = Endpoint(host, port, unix_name(self._unix.socket))
            self._accepting = threading.Thread(
                target=self._accept, name="control-accept", daemon=True
            )
            self._accepting.start()
            made.pop_all()

    def counters(self) -> Counters:
        return self._tally.read()

    def close(self) -> None:
        """End all calls and connections but the streams handed on. Safe to call twice."""
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
        timeout_s = self._config.close_timeout_s
        deadline = time.monotonic() + timeout_s
        self._wake.close()
        self._accepting.join(timeout_s)  # after it, no connection begins
        with self._lock:
            connections = dict(self._connections)
        for channel in connections.values():
            channel.shutdown()
        num_late = self._pool.close(deadline - time.monotonic())
        for thread in connections.keys() - {threading.current_thread()}:
            thread.join(max(0.0, deadline - time.monotonic()))
            num_late += thread.is_alive()
        if num_late:
            _log.error("%d operations of peers still run after %g s", num_late, timeout_s)

    def _accept(self) -> None:
        listeners = {each.socket.fileno(): each for each in (self._tcp, self._unix)}
        poll = select.poll()
        for fd in (*listeners, self._woken.fileno()):
            poll.register(fd, select.POLLIN)
        while not self._closing.is_set():
            for fd, _ in poll.poll():
                try:
                    if fd in listeners:
                        self._take(listeners[fd])
                except Exception:  # our bug: the next one is let in all the same
                    _log.exception("a connection could not be taken")
                    self._tally.failed()
        for each in (self._tcp.socket, self._unix.socket, self._woken):
            each.close()

    def _take(self, listener: _Listener) -> None:
        try:
            connection, _ = listener.socket.accept()
        except _GONE:
            return
        except OSError as error:
            if self._seldom.passes("accept"):
                _log.warning("no connection can be taken: %s", error)
            self._closing.wait(_ACCEPT_PAUSE_S)
            return
        if listener.local and not same_user(connection):
            self._turn_away(connection, "user")
        elif not listener.places.acquire(blocking=False):
            self._turn_away(connection, "busy")
        else:
            self._begin(listener, connection)

    def _turn_away(self, connection: socket.socket, reason: str) -> None:
        self._count_refusal(_address(connection), reason, _TURNED_AWAY[reason])
        connection.close()

    def _begin(self, listener: _Listener, connection: socket.socket) -> None:
        try:
            channel = self._prepare(listener, connection)
        except OSError:  # it is gone again
            listener.places.release()
            self._turn_away(connection, "lost")
            return
        thread = threading.Thread(
            target=self._receive, args=(listener, channel), name="control-peer", daemon=True
        )
        with self._lock:
            self._connections[thread] = channel
        try:
            thread.start()
        except RuntimeError as error:  # no thread can be started
            with self._lock:
                del self._connections[thread]
            listener.places.release()
            self._count_refusal(_address(channel.socket), "busy", str(error))
            channel.close()

    def _prepare(self, listener: _Listener, connection: socket.socket) -> Channel:
        if listener.local:
            return Channel(connection)
        prepare_tcp(connection)
        if self._config.tls_server is None:
            return Channel(connection)
        tls = self._config.tls_server.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        )
        return TlsChannel(tls)

    def _receive(self, listener: _Listener, channel: Channel) -> None:
        """The life of one connection, in its own thread."""
        try:
            admitted = self._admit(listener, channel)
            if admitted is None:
                return
            if admitted.purpose == CALLS:
                self._serve(channel, admitted)
            else:
                self._hand_on(channel, admitted)
        finally:
            with self._lock:
                self._connections.pop(threading.current_thread(), None)

    def _admit(self, listener: _Listener, channel: Channel) -> Admitted | None:
        """Return who came; None after a refusal. The place at the door is free in any case."""
        stranger = _address(channel.socket)
        try:
            deadline = time.monotonic() + self._config.handshake_timeout_s
            channel.handshake(deadline)
            admitted = admit(channel, Party(self._config, self._identity()), stranger, deadline)
            if self._on_peer is not None:
                self._on_peer(admitted.identity)
        except (KvTransferError, OSError) as error:
            self._refuse(stranger, error)
            channel.close()
            return None
        except Exception:  # the agent's callbacks
            _log.exception("the connection of %s could not be answered", stranger)
            self._tally.failed()
            channel.close()
            return None
        finally:
            listener.places.release()
        self._tally.connected()
        return admitted

    def _refuse(self, stranger: str, error: Exception) -> None:
        reason = next((told for kind, told in _REASONS.items() if isinstance(error, kind)), "other")
        if reason == "malformed":
            self._tally.malformed()
        self._count_refusal(stranger, reason, str(error) or type(error).__name__)

    def _count_refusal(self, stranger: str, reason: str, told: str) -> None:
        self._tally.refused(reason)
        if self._seldom.passes(reason):
            _log.warning("refused %s (%s, and so may be more): %s", stranger, reason, told)

    def _serve(self, channel: Channel, admitted: Admitted) -> None:
        peer = admitted.identity.peer
        desk = Desk(
            self._identity().peer.name, self._config, self._operations, self._pool, self._tally
        )
        try:
            Serving(channel, peer, desk).run()
        except MalformedMessage as error:
            self._tally.malformed()
            _log.warning("closed the connection of %s: %s", peer.name, error)
        except OSError as error:
            _log.info("the connection of %s broke: %s", peer.name, error)
        finally:
            channel.close()

    def _hand_on(self, channel: Channel, admitted: Admitted) -> None:
        """From here on the connection and this thread are the transport's."""
        with self._lock:
            self._connections.pop(threading.current_thread(), None)
        connection = channel.detach()
        peer = admitted.identity.peer
        try:
            self._on_stream(admitted.purpose, connection, peer)
        except Exception:  # the transport's bug
            _log.exception("the %s connection of %s failed", admitted.purpose, peer.name)
            self._tally.failed()
            connection.close()


def _address(connection: socket.socket) -> str:
    try:
        found = connection.getpeername()
    except OSError:
        return "a stranger who left"
    return f"{found[0]}:{found[1]}" if isinstance(found, tuple) else "a process on this host"
