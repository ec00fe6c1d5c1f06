"""One keep-alive connection of HTTP/1.1: what comes is handed on at once, with the time it came."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import httptools

OnBody = Callable[[bytes, float], None]  # a piece, and when it came


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    content_type: str


class WireBroken(ConnectionError):
    """The connection ended before the answer did; `silent`: before its first byte."""

    def __init__(self, reason: str, silent: bool) -> None:
        super().__init__(reason, silent)
        self.reason = reason
        self.silent = silent

    def __str__(self) -> str:
        return self.reason


class Wire(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._done: asyncio.Future[Head] | None = None
        self._on_body: OnBody | None = None
        self._now = 0.0
        self._heard = False
        self._head_read = False
        self._measured = False  # the answer's length is told: by a number, or in chunks
        self._content_type = ""
        self.reusable = True

    async def ask(self, request: bytes, on_body: OnBody) -> Head:
        """Send a request; return when its answer is complete."""
        if self._transport is None or self._transport.is_closing():
            raise WireBroken("the server closed the connection", silent=True)
        self._done = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._on_body = on_body
        self._heard = self._head_read = self._measured = False
        self._content_type = ""
        self._transport.write(request)
        try:
            return await self._done
        except asyncio.CancelledError:
            self.close()  # the rest of the answer would be read as the next one's
            raise
        finally:
            self._done = None

    def close(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        self._heard = True
        if self._parser is None:
            self.close()  # nothing was asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the answer is not HTTP: {error}")
            self.close()

    def eof_received(self) -> None:
        return None  # closes

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        if error is None and self._head_read and not self._measured:
            self._finish()  # such an answer ends where the connection does
        self._fail(str(error) if error else "the server closed the connection")

    # the parser's calls

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered == b"content-type":
            self._content_type = value.decode("latin-1").partition(";")[0].strip().lower()
        elif lowered in (b"content-length", b"transfer-encoding"):
            self._measured = True

    def on_headers_complete(self) -> None:
        self._head_read = True

    def on_body(self, data: bytes) -> None:
        if self._on_body is not None:
            self._on_body(data, self._now)

    def on_message_complete(self) -> None:
        if self._parser is not None and not self._parser.should_keep_alive():
            self.reusable = False
        self._finish()

    def _finish(self) -> None:
        if self._parser is None or self._done is None or self._done.done():
            return
        head = Head(self._parser.get_status_code(), self._content_type)
        self._parser = None
        self._done.set_result(head)

    def _fail(self, reason: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(WireBroken(reason, silent=not self._heard))
