"""Writes of one turn of the event loop, sent together: one call of the system for all of them."""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stafette.platform.frontend.asgi import ON_HANG_UP, HangUp

_AT_ONCE_BYTES = 64 << 10  # what is longer is not worth waiting


class GatheringTransport:
    """Stands before a connection's transport."""

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        if len(data) >= _AT_ONCE_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts = self._parts, []
            self._inner.write(parts[0] if len(parts) == 1 else b"".join(parts))


class GatheringProtocol(HttpToolsProtocol):
    """uvicorn's: a short answer's head, text and end leave in one piece, and whoever answers hears
    at once when the client hangs up, without a task that waits for that.
    """

    _is_lost = False
    _told: HangUp | None = None  # whoever answers now

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        gathering = GatheringTransport(transport, self.loop)
        super().connection_made(cast(asyncio.Transport, gathering))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._is_lost = True
        self._tell()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][ON_HANG_UP] = self._on_hang_up

    def _on_hang_up(self, told: HangUp | None) -> None:
        self._told = told
        if self._is_lost:
            self._tell()

    def _tell(self) -> None:
        told, self._told = self._told, None
        if told is not None:
            told()
