"""The stream over a bare TCP connection: each message is its length, 4 bytes, and itself.

Whoever gives up says why before it closes: a last message, marked by the length's highest bit.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

from stafette.kvtransfer.errors import MalformedMessage
from stafette.workers.service.auth import MAX_BYTES
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.streams.tls import client_side, server_side
from stafette.workers.service.streams.wire import Listener, Serve, Stream, StreamEnded, Wire

_HEAD_BYTES = 4
_LAST = 1 << 31
_MAX_REASON_BYTES = 512
_UNREAD_BYTES = 64 << 10  # beyond, the other end waits


class TcpStream(Stream):
    async def listen(self, config: ServiceConfig, serve: Serve) -> Listener:
        listener = _TcpListener(serve)
        await listener.start(config)
        return listener

    async def connect(self, address: str, config: ServiceConfig) -> Wire:
        host, _, port = address.rpartition(":")
        wire, loop = TcpWire(config.max_message_bytes), asyncio.get_running_loop()
        tls = client_side(config)
        await loop.create_connection(lambda: wire, host.strip("[]"), int(port), ssl=tls)
        return wire


class _TcpListener(Listener):
    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._served: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self, config: ServiceConfig) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Accepted(self._accept), config.host, config.port, ssl=server_side(config)
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        served = tuple(self._served)
        for each in served:
            each.cancel()
        await asyncio.gather(*served, return_exceptions=True)

    def _accept(self, wire: Wire) -> None:
        served = asyncio.create_task(self._until_served(wire))
        self._served.add(served)
        served.add_done_callback(self._served.discard)

    async def _until_served(self, wire: Wire) -> None:
        try:
            await self._serve(wire)
        finally:
            await wire.close()


class TcpWire(Wire, asyncio.Protocol):
    """Either end."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes  # of a message; more of it is not waited for
        self._transport: asyncio.Transport | None = None
        self._rest = bytearray()  # of a message that has not come whole
        self._wanted = 0  # so long it must be to be looked at again
        self._messages: deque[bytes] = deque()
        self._unread_bytes = 0
        self._error: Exception | None = None  # what ended it, behind all messages
        self._ended = False
        self._news: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None  # None: it is
        self._lost = asyncio.get_running_loop().create_future()

    @property
    def peer(self) -> str:
        assert self._transport is not None
        return str(self._transport.get_extra_info("peername"))

    async def read(self) -> bytes | None:
        while not self._messages:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        message = self._messages.popleft()
        self._unread_bytes -= len(message)
        if self._unread_bytes <= _UNREAD_BYTES < self._unread_bytes + len(message):
            self._resume()
        return message

    async def write(self, message: bytes) -> None:
        if self._lost.done() or self._transport is None:
            raise ConnectionError("the connection is closed")
        self._transport.write(len(message).to_bytes(_HEAD_BYTES, "big") + message)
        if self._writable is not None:
            await asyncio.shield(self._writable)

    async def close(self, reason: str = "", timeout_s: float = 1.0) -> None:
        """What was written and does not leave in time never does."""
        if self._transport is not None and not self._lost.done():
            if reason and self._writable is None:
                told = reason.encode()[:_MAX_REASON_BYTES]
                self._transport.write((_LAST | len(told)).to_bytes(_HEAD_BYTES, "big") + told)
            self._transport.close()
            await asyncio.wait((self._lost,), timeout=timeout_s)
            self._transport.abort()
        self._end(None)

    def abort(self) -> None:
        self._end(None)
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return  # behind a last word, or what was no message
        try:
            self._take(data)
        except (MalformedMessage, StreamEnded) as error:
            self._end(error)

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error)
        if not self._lost.done():
            self._lost.set_result(None)
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    # And its helpers.

    def _take(self, data: bytes) -> None:
        """Cut what has come into messages."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data, self._rest = bytes(self._rest), bytearray()
        start, self._wanted = 0, _HEAD_BYTES
        while (begin := start + _HEAD_BYTES) <= len(data):
            head = int.from_bytes(data[start:begin], "big")
            end = begin + self._checked(head)
            self._wanted = end - start
            if end > len(data):
                break
            if head & _LAST:
                raise StreamEnded(data[begin:end].decode(errors="replace"))
            self._messages.append(data[begin:end])
            self._unread_bytes += end - begin
            start, self._wanted = end, _HEAD_BYTES
        self._rest += data[start:]
        if self._unread_bytes > _UNREAD_BYTES and self._transport is not None:
            self._transport.pause_reading()
        self._wake()

    def _checked(self, head: int) -> int:
        size, most = head & ~_LAST, _MAX_REASON_BYTES if head & _LAST else self.max_bytes
        if size > most:
            raise MalformedMessage("message", f"at most {most} bytes, not {size}")
        return size

    def _end(self, error: Exception | None) -> None:
        if not self._ended:
            self._ended, self._error = True, error
            self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()


class _Accepted(TcpWire):
    """A stranger's end: it may say little."""

    def __init__(self, accept: Callable[[Wire], None]) -> None:
        super().__init__(MAX_BYTES)
        self._accept = accept

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._accept(self)
