"""Where an agent listens, and the sockets that lead there."""

import ipaddress
import os
import secrets
import socket
import struct
from dataclasses import dataclass

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
    if ipaddress.ip_address(address[0]).is_unspecified and not config.allow_wildcard:
        remedy = "would listen on every interface: name one address, or set allow_wildcard"
        raise InvalidValue("control.host", config.host, remedy)
    listener = socket.socket(family, socket.SOCK_STREAM)
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
    listener.bind(f"\0stafette-{secrets.token_hex(16)}")
    listener.listen(_BACKLOG)
    return listener


def unix_name(listener: socket.socket) -> str:
    name: bytes = listener.getsockname()
    return name[1:].decode()


def dial_tcp(endpoint: Endpoint, timeout_s: float) -> socket.socket:
    connection = socket.create_connection((endpoint.host, endpoint.port), timeout=timeout_s)
    prepare_tcp(connection)
    return connection


def dial_unix(endpoint: Endpoint, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)  # it waits where the listener's queue is full
        connection.connect(f"\0{endpoint.unix}")
        connection.settimeout(None)
        if not same_user(connection):
            raise PermissionError("its socket belongs to another user")
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
