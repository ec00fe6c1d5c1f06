"""Runs the API on sockets, with uvicorn."""

import asyncio
import contextlib
import math
import signal
import socket
import ssl
from collections.abc import Callable, Iterator

import uvicorn

from stafette.platform.frontend.app import Frontend
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.frontend.gathering import GatheringProtocol
from stafette.router.errors import InvalidValue
from stafette.router.service.listening import open_listener, url_of

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_S = 0.01
_HANDSHAKE_S = 2.0


def listen(config: FrontendConfig, shared: bool = False) -> socket.socket:
    """Return a socket that listens; a `shared` one, once `Server.run` has it."""
    try:
        return open_listener(config.host, config.port, shared)
    except InvalidValue as error:
        raise InvalidSetting(error.field, error.value, error.remedy) from None


def address(config: FrontendConfig, listener: socket.socket, own_host: str = "127.0.0.1") -> str:
    """Return the URL at which the API is; `own_host`: how others reach this host."""
    return url_of(listener, config.tls_certfile is not None, own_host)


class Server:
    """Ends gently: what was sent to it is answered, and what is in flight has `drain_timeout_s`."""

    def __init__(self, app: Frontend) -> None:
        self._app = app
        config = app.config
        self._inner = _Uvicorn(
            uvicorn.Config(
                app,
                http=GatheringProtocol,
                ws="none",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,  # nothing here asks who the client is
                timeout_keep_alive=math.ceil(config.keep_alive_s),
                timeout_graceful_shutdown=math.ceil(config.drain_timeout_s),
                ssl_certfile=config.tls_certfile,
                ssl_keyfile=config.tls_keyfile,
            )
        )
        try:
            self._inner.config.load()
        except (OSError, ssl.SSLError) as error:
            raise InvalidSetting("tls_certfile", config.tls_certfile, f"{error}") from None

    async def run(self, listener: socket.socket, started: Callable[[], None]) -> None:
        """Serve until `stop`."""
        serving = asyncio.create_task(self._inner.serve([listener]))
        while not self._inner.started and not serving.done():
            await asyncio.sleep(_POLL_S)
        if self._inner.started:
            started()
        await serving

    def stop(self) -> None:
        """End; a second time: at once."""
        self._app.drain()
        self._inner.force_exit = self._inner.should_exit
        self._inner.should_exit = True

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


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise them again, and end us before our clean-up."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, but not before whoever is connected already has been answered.

        The system completes connections before we take them; those would be reset, although other
        processes may listen on the same port.
        """
        listeners = [each.dup() for each in sockets or ()]
        for server in self.servers:
            server.close()
        connected = [each for listener in listeners for each in _last_of(listener)]
        if connected:
            serving = [asyncio.ensure_future(self._serve_one(each)) for each in connected]
            await asyncio.wait(serving, timeout=_HANDSHAKE_S)
        await super().shutdown(sockets)

    async def _serve_one(self, connection: socket.socket) -> None:
        config = self.config
        with contextlib.suppress(OSError):  # it has gone by now
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: GatheringProtocol(config, self.server_state, self.lifespan.state),
                connection,
                ssl=config.ssl,
                ssl_handshake_timeout=_HANDSHAKE_S if config.ssl else None,
            )


def _last_of(listener: socket.socket) -> Iterator[socket.socket]:
    """Close a listener; yield the connections that nobody has taken yet."""
    with listener:
        listener.setblocking(False)
        while True:
            try:
                connection, _ = listener.accept()
            except ConnectionAbortedError:
                continue  # that one has gone
            except OSError:  # there is none, or no more descriptors for them
                return
            connection.setblocking(False)
            yield connection
