"""One page for all processes of a node, on one port: whichever of them could take it has it.

When that process dies, another one takes the port, and nothing is lost but a scrape.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path

from stafette.platform.observability import members
from stafette.platform.observability.config import MetricsConfig
from stafette.platform.observability.families import gauge
from stafette.platform.observability.members import Member
from stafette.platform.observability.merging import merged
from stafette.platform.observability.page import CONTENT_TYPE, Page
from stafette.platform.observability.process import ProcessMetrics, text_of
from stafette.router.errors import InvalidValue
from stafette.router.service.config import ServiceConfig
from stafette.router.service.http_server import Asked, HttpConnection, Reply
from stafette.router.service.listening import open_listener

_log = logging.getLogger(__name__)

_TRY_AGAIN_S = 1.0  # to take the port, which another process may have given back
_HTTP = ServiceConfig(max_body_bytes=1)
_TEXT = "text/plain; charset=utf-8"


class NodePage(Page):
    """Used by one event loop, from `start` to `close`."""

    def __init__(self, process: ProcessMetrics, config: MetricsConfig, folder: Path) -> None:
        self._process = process
        self._config = config
        self._folder = folder
        self._member = Member(folder, process.render)
        self._serving: asyncio.Task[None] | None = None

    @property
    def process(self) -> ProcessMetrics:
        return self._process

    async def start(self) -> None:
        await self._member.start()
        if self._config.port is not None:
            self._serving = asyncio.create_task(self._serve(), name="metrics")

    async def text(self) -> bytes:
        """Return what all processes of this node tell, this one first."""
        others = sorted(path for path in self._folder.iterdir() if not path.suffix)
        others = [path for path in others if path != self._member.path]
        shown = others[: self._config.max_processes - 1]
        told = await members.ask(shown, self._config.ask_timeout_s)
        pages = [page for page in told if page]
        counts = {
            "shown": 1 + len(pages),
            "silent": told.count(None),
            "left_out": len(others) - len(shown),
        }
        own = gauge("stafette_node_processes", "Processes of this node.", counts, "state")
        return merged([self._process.render(), *pages, text_of([own])])

    async def close(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
            with suppress(asyncio.CancelledError):
                await self._serving
        await self._member.close()

    async def _serve(self) -> None:
        listener = await self._take_port()
        loop, connections = asyncio.get_running_loop(), set[HttpConnection]()
        server = await loop.create_server(
            lambda: HttpConnection(_Http(self), _HTTP, connections, loop.time()), sock=listener
        )
        try:
            while True:
                await asyncio.sleep(_TRY_AGAIN_S)
                for connection in list(connections):
                    connection.check(loop.time())
        finally:
            server.close()
            for connection in list(connections):
                connection.abort()

    async def _take_port(self) -> socket.socket:
        host, port, told = self._config.host, self._config.port, False
        assert port is not None
        while True:
            try:
                listener = open_listener(host, port)
            except InvalidValue as error:
                if not told:
                    _log.info("%s (most likely another process of this node tells for all)", error)
                told = True
                await asyncio.sleep(_TRY_AGAIN_S)
            else:
                _log.info("the metrics of this node are at %s:%d/metrics", host, port)
                return listener


class _Http:
    """The page behind HTTP."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def look(self, asked: Asked) -> Exception | None:
        return None

    def answer(self, asked: Asked) -> Reply | Awaitable[Reply]:
        if asked.refused is not None:
            return Reply(400, _TEXT, str(asked.refused).encode(), closes=True)
        if asked.path != "/metrics":
            return Reply(404, _TEXT, b"ask for /metrics\n")
        if asked.method not in ("GET", "HEAD"):
            return Reply(405, _TEXT, b"use GET\n", (("allow", "GET, HEAD"),))
        return self._show()

    async def _show(self) -> Reply:
        try:
            return Reply(200, CONTENT_TYPE, await self._page.text())
        except Exception:  # of whoever counts something: the scrape has failed, and says so
            _log.exception("the metrics cannot be told")
            return Reply(500, _TEXT, b"the log of this process says why\n")
