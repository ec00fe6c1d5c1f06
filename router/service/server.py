"""Runs the service on a socket; ends gently on a signal."""

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Callable, Iterator

from stafette.router.errors import InvalidValue
from stafette.router.service.app import RouterApp
from stafette.router.service.config import ServiceConfig
from stafette.router.service.http_server import HttpConnection

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_S = 1.0  # how often connections are looked at, at most
_HANDSHAKE_S = 10.0


class Server:
    """Ends gently: nothing new is taken, and what is in flight has `drain_timeout_s`."""

    def __init__(self, app: RouterApp) -> None:
        self._app = app
        self._config = app.service.config.service
        self._tls = _tls(self._config)
        self._connections: set[HttpConnection] = set()
        self._stopping = asyncio.Event()
        self._at_once = False

    async def run(self, listener: socket.socket, started: Callable[[], None]) -> None:
        """Serve until `stop`."""
        loop = asyncio.get_running_loop()
        async with self._app.service.running():
            server = await loop.create_server(
                lambda: HttpConnection(self._app, self._config, self._connections, loop.time()),
                sock=listener,
                ssl=self._tls,
                ssl_handshake_timeout=_HANDSHAKE_S if self._tls else None,
            )
            looking = asyncio.create_task(self._keep_looking())
            started()
            await self._stopping.wait()
            server.close()
            await self._drain()
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def stop(self) -> None:
        """End; a second time: at once."""
        self._app.drain()
        self._at_once = self._stopping.is_set()
        self._stopping.set()

    @contextlib.contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    async def _drain(self) -> None:
        """Close each connection as soon as nothing is under way on it, in the end all of them."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._config.drain_timeout_s
        for connection in self._connections:
            connection.draining = True
        while self._connections and loop.time() < ends_at and not self._at_once:
            self._look(loop.time())
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.abort()

    async def _keep_looking(self) -> None:
        loop = asyncio.get_running_loop()
        shortest_s = min(self._config.body_timeout_s, self._config.keep_alive_s)
        while True:
            self._look(loop.time())
            await asyncio.sleep(min(_LOOK_S, shortest_s / 4))

    def _look(self, now: float) -> None:
        for connection in list(self._connections):
            connection.check(now)


def _tls(config: ServiceConfig) -> ssl.SSLContext | None:
    if config.tls_certfile is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_certfile, config.tls_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise InvalidValue(
            "tls_certfile", config.tls_certfile, f"cannot be used: {error}"
        ) from None
    return context
