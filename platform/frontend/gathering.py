"""uvicorn's protocol, with fewer calls of the system, and a short way for a stream's parts."""

import asyncio
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from stafette.platform.frontend.asgi import ON_HANG_UP, WRITE_NOW, HangUp

_AT_ONCE_BYTES = 64 << 10  # what is longer is not worth waiting
_LAST_CALL_S = 0.5  # for a request that was on its way on an idle connection when we began to end


class GatheringTransport:
    """Stands before a connection's transport: what is written in one turn of the event loop leaves
    together.
    """

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

    def write_now(self, data: bytes) -> None:
        """Write what has nothing to wait for, unless something else does."""
        if self._parts:
            self._parts.append(data)
        else:
            self._inner.write(data)

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
    """uvicorn's: a short answer's head, text and end leave in one piece; whoever answers hears
    at once when the client hangs up, without a task that waits for that, and writes the parts of a
    stream without uvicorn's messages.
    """

    _is_lost = False
    _is_leaving = False
    _told: HangUp | None = None  # whoever answers now
    _gathering: GatheringTransport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._gathering = GatheringTransport(transport, self.loop)
        super().connection_made(cast(asyncio.Transport, self._gathering))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._is_lost = True
        self._tell()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][ON_HANG_UP] = self._on_hang_up

    def on_headers_complete(self) -> None:
        super().on_headers_complete()  # which makes the request's cycle, and a task to begin later
        self.scope["state"][WRITE_NOW] = partial(self._write_now, self.cycle)
        if self._is_leaving:
            self.cycle.keep_alive = False  # the response says so

    def shutdown(self) -> None:
        """Answer what is on its way, and nothing behind it."""
        self._is_leaving = True
        if self._is_idle():
            self.loop.call_later(_LAST_CALL_S, self._leave)
        else:
            super().shutdown()

    def _leave(self) -> None:
        if self._is_idle():
            self.transport.close()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _write_now(self, cycle: RequestResponseCycle, data: bytes) -> bool:
        """Write a part of a chunked response, as uvicorn would; False: uvicorn must do it."""
        if self.flow.write_paused or cycle.disconnected or not cycle.chunked_encoding:
            return False
        if cycle.response_complete or not data:
            return False
        self._gathering.write_now(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def _on_hang_up(self, told: HangUp | None) -> None:
        self._told = told
        if self._is_lost:
            self._tell()

    def _tell(self) -> None:
        told, self._told = self._told, None
        if told is not None:
            told()
