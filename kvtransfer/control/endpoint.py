"""Where an agent listens, and the sockets that lead there."""

import ipaddress
import os
import secrets
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any

from stafette.kvtransfer.control.config import ControlConfig
from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.strict import text, whole
from stafette.kvtransfer.transport import PeerInfo

NAME = "control"  # the key in PeerInfo.endpoints
_MAX_HOST_BYTES = 255
_MAX_UNIX_BYTES = 100  # Linux takes 107
_BACKLOG = 128
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_ROOT = 0
_NO_TIME_S = 1e-3  # the shortest wait: 0 would mean something else to a socket
_TIMEVAL = struct.Struct("@ll")

# A host that vanished without a word is noticed within half a minute.
_TCP_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`unix` is a name in the abstract namespace, for peers on the same host."""

    host: str
    port: int
    unix: str

    def pack(self) -> list[object]:
        return [self.host, self.port, self.unix]

    @classmethod
    def read(cls, value: object) -> "Endpoint":
        match value:
            case [host, port, unix]:
                return cls(
                    text(host, "control host", _MAX_HOST_BYTES),
                    whole(port, "control port", 1 << 16),
                    text(unix, "control socket", _MAX_UNIX_BYTES),
                )
        raise MalformedMessage("control endpoint", "[host, port, unix]")


def endpoint_of(peer: PeerInfo) -> Endpoint:
    return Endpoint.read(peer.endpoints.get(NAME))


def listen_tcp(config: ControlConfig) -> socket.socket:
    """Return the listening socket; InvalidValue tells why an address cannot be listened on."""
    try:
        found = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        remedy = f"must be an address of this host ({error})"
        raise InvalidValue("control.host", config.host, remedy) from None
    family, _, _, _, address = found[0]
    if _is_wildcard(str(address[0])) and not config.allow_wildcard:
        remedy = "would listen on every interface: name one address, or set allow_wildcard"
        raise InvalidValue("control.host", config.host, remedy)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setblocking(False)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        shown = f"{config.host}:{config.port}"
        remedy = f"must be a free address of this host ({error})"
        raise InvalidValue("control.host, port", shown, remedy) from None
    return listener


def listen_unix() -> socket.socket:
    """Return a listening socket under a name that nobody has guessed before us."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    try:
        listener.bind(f"\0stafette-{secrets.token_hex(16)}")
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def unix_name(listener: socket.socket) -> str:
    name: bytes = listener.getsockname()
    return name[1:].decode()


def dial_tcp(endpoint: Endpoint, deadline: float) -> socket.socket:
    """Connect to one of the host's addresses; the deadline is for all of them."""
    failed = OSError(f"{endpoint.host} has no address")
    for family, kind, protocol, _, address in _resolve(endpoint, deadline):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(max(_NO_TIME_S, deadline - time.monotonic()))
            connection.connect(address)
            prepare_tcp(connection)
            return connection
        except OSError as error:
            connection.close()
            failed = error
    raise failed


def dial_unix(endpoint: Endpoint, deadline: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Where the listener's queue is full, only a blocking connect waits.
        _limit_sending(connection, max(_NO_TIME_S, deadline - time.monotonic()))
        connection.connect(f"\0{endpoint.unix}")
        _limit_sending(connection, 0)
        if not same_user(connection):
            raise PermissionError("its socket belongs to another user")
    except BlockingIOError:
        connection.close()
        raise TimeoutError from None
    except OSError:
        connection.close()
        raise
    return connection


def prepare_tcp(connection: socket.socket) -> None:
    for level, option, value in _TCP_OPTIONS:
        connection.setsockopt(level, option, value)
    connection.settimeout(None)


def same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket is ours, or root's."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return uid in (os.geteuid(), _ROOT)


def _is_wildcard(address: str) -> bool:
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_unspecified


def _limit_sending(connection: socket.socket, timeout_s: float) -> None:
    """Make connecting and sending end after a time; 0: never."""
    seconds, rest = divmod(timeout_s, 1)
    limit = _TIMEVAL.pack(int(seconds), int(rest * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _resolve(endpoint: Endpoint, deadline: float) -> list[tuple[Any, ...]]:
    """Return the addresses of a host. A name server may be slow, and cannot be told to be quick."""
    address = (endpoint.host, endpoint.port, 0, socket.SOCK_STREAM)
    try:
        return socket.getaddrinfo(*address, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass  # a name, or nothing that is one
    except UnicodeError as error:
        raise OSError(f"{endpoint.host} is no host name: {error}") from None
    found: list[list[tuple[Any, ...]] | OSError] = []

    def ask() -> None:
        try:
            found.append(list(socket.getaddrinfo(*address)))
        except OSError as error:
            found.append(error)

    asking = threading.Thread(target=ask, name="control-resolve", daemon=True)
    try:
        asking.start()
    except RuntimeError as error:  # no thread can be started
        raise OSError(str(error)) from error
    asking.join(max(_NO_TIME_S, deadline - time.monotonic()))
    if not found:
        raise TimeoutError
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]
