"""A listening socket, with an error that says what to do when it cannot be had."""

import socket

from stafette.router.errors import InvalidValue

_BACKLOG = 2_048
_EVERYWHERE = ("0.0.0.0", "::")


def open_listener(host: str, port: int, shared: bool = False) -> socket.socket:
    """Return a socket that listens; InvalidValue when the address cannot be had.

    `shared`: with other processes of this host that say so too; each gets a part of what comes,
    from when on it listens. It does not yet: whoever cannot answer would have its part in vain.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, or asyncio would not turn Nagle's algorithm off on its connections.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        if not shared:
            listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        remedy = f"cannot listen there: {error.strerror}; choose another host or port"
        raise InvalidValue("port", f"{host}:{port}", remedy) from None
    return listener


def url_of(listener: socket.socket, tls: bool, own_host: str = "127.0.0.1") -> str:
    """Return the URL of a listener; of one that listens everywhere, on the host given."""
    host, port = listener.getsockname()[:2]
    if host in _EVERYWHERE:
        host = own_host
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
