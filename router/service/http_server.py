"""HTTP/1.1 on one connection, parsed by httptools: requests one after the other, answered in order.

There is no task, no timer and no framework for a request that is answered at once, which nearly all
are. What time brings is found by whoever looks at all connections now and then: `check`.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus
from typing import NamedTuple, Protocol, cast

import httptools  # type: ignore[import-not-found, import-untyped, unused-ignore]

from stafette.router.service.config import ServiceConfig
from stafette.router.service.errors import BodyTooLarge, BodyTooSlow, MalformedHead

_MAX_HEAD_BYTES = 64 << 10
_LINGER_S = 2.0
_MAX_PIPELINED = 16  # requests that came before the one before was answered
_NAMES = {status.value: status.phrase for status in HTTPStatus}


@dataclass(slots=True)
class Asked:
    """A request; its body is there when all of it has come."""

    method: str = ""
    path: str = ""
    query: str = ""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    refused: Exception | None = None  # for what its head says

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")


class Reply(NamedTuple):
    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    closes: bool = False  # what is left of the request cannot be read


class App(Protocol):
    """Whoever answers. Neither of them may raise."""

    def look(self, asked: Asked) -> Exception | None:
        """Return why a request is refused, by its head alone."""

    def answer(self, asked: Asked) -> Reply | Awaitable[Reply]:
        """Return the answer, or something to wait for; it is cancelled when the client leaves."""


class State(Enum):
    IDLE = auto()  # nothing of a request has come
    READING = auto()
    ANSWERING = auto()
    LEAVING = auto()  # all is said: what still comes is dropped, so that the client reads it


class HttpConnection(asyncio.Protocol):
    """`others` are all connections of the server, this one among them while it lives."""

    def __init__(
        self, app: App, config: ServiceConfig, others: "set[HttpConnection]", now: float
    ) -> None:
        self.state = State.IDLE
        self.draining = False  # closed as soon as nothing is under way
        self._app = app
        self._config = config
        self._others = others
        self._since = now  # it has been in this state
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._asked = Asked()
        self._url = b""
        self._parts: list[bytes] = []
        self._size = self._head_size = 0
        self._keeps_alive = True
        self._waiting: deque[tuple[Asked, bool]] = deque()  # with whether it stays open
        self._task: asyncio.Task[None] | None = None
        self._is_full = False  # the client reads too slowly
        self._is_held = False  # it asks too fast

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no such class
        self._others.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._others.discard(self)
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self.state is State.LEAVING:
            return
        if self.state is State.IDLE:
            self._enter(State.READING)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.close()  # it was refused
        except httptools.HttpParserError as error:
            reason = error.__context__ or error
            if isinstance(reason, BodyTooLarge | MalformedHead):
                self._break_off(reason)
            else:
                self._break_off(MalformedHead("request", str(error), "must be HTTP/1.1"))

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._go_on()

    def check(self, now: float) -> None:
        """Close what is idle for too long; refuse what does not arrive."""
        waited_s = now - self._since
        if self.state is State.IDLE and (self.draining or waited_s > self._config.keep_alive_s):
            if waited_s > self._config.keep_alive_s and self._has_unsent:
                self.abort()  # its client does not read
            else:
                self.close()
        elif self.state is State.LEAVING and waited_s > _LINGER_S:
            self.close()
        elif self.state is State.READING and waited_s > self._config.body_timeout_s:
            remedy = f"did not arrive within {self._config.body_timeout_s:g} s: send it faster"
            self._break_off(BodyTooSlow("body", f"{self._size} bytes", remedy))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    @property
    def _has_unsent(self) -> bool:
        return self._transport is not None and self._transport.get_write_buffer_size() > 0

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._asked, self._url, self._parts = Asked(), b"", []
        self._size = self._head_size = 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        self._asked.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        asked = self._asked
        asked.method = self._parser.get_method().decode("latin-1")
        path, _, query = self._url.decode("latin-1").partition("?")
        asked.path, asked.query = path, query
        self._keeps_alive = self._parser.should_keep_alive()
        length = asked.header(b"content-length")
        if length.isdecimal() and int(length[:20]) > self._config.max_body_bytes:
            raise self._too_large(length)
        if self._parser.should_upgrade():
            remedy = "leave it out: this is HTTP/1.1 and nothing else"
            asked.refused = MalformedHead("upgrade", asked.header(b"upgrade"), remedy)
        else:
            asked.refused = self._app.look(asked)
        if asked.refused is None and asked.headers.get(b"expect", b"").lower() == b"100-continue":
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._config.max_body_bytes:
            raise self._too_large(self._size)
        if self._asked.refused is None:  # else nothing is kept of it
            self._parts.append(body)

    def on_message_complete(self) -> None:
        asked = self._asked
        asked.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        if self._task is None and not self._is_full and not self._waiting:
            self._serve(asked, self._keeps_alive)
            return
        self._waiting.append((asked, self._keeps_alive))
        if len(self._waiting) >= _MAX_PIPELINED and self._transport and not self._is_held:
            self._is_held = True
            self._transport.pause_reading()

    def _serve(self, asked: Asked, keeps_alive: bool) -> None:
        reply = self._app.answer(asked)
        if isinstance(reply, Reply):
            self._send(asked, reply, keeps_alive)
            return
        self._enter(State.ANSWERING)
        self._task = asyncio.ensure_future(self._await(asked, reply, keeps_alive))

    async def _await(self, asked: Asked, reply: Awaitable[Reply], keeps_alive: bool) -> None:
        answer = await reply
        self._task = None
        self._send(asked, answer, keeps_alive)
        self._go_on()

    def _go_on(self) -> None:
        """Answer what came meanwhile."""
        while self._waiting and self._task is None and not self._is_full:
            self._serve(*self._waiting.popleft())
        if self._is_held and not self._waiting and self._transport is not None:
            self._is_held = False
            self._transport.resume_reading()

    def _send(self, asked: Asked, reply: Reply, keeps_alive: bool) -> None:
        closes = reply.closes or self.draining or not keeps_alive
        lines = [
            f"HTTP/1.1 {reply.status} {_NAMES.get(reply.status, '')}\r\n"
            f"content-type: {reply.content_type}\r\ncontent-length: {len(reply.body)}\r\n"
        ]
        lines += [f"{name}: {value}\r\n" for name, value in reply.headers]
        lines.append("connection: close\r\n\r\n" if closes else "\r\n")
        body = b"" if asked.method == "HEAD" else reply.body
        self._write("".join(lines).encode("latin-1") + body)
        if closes:
            self._waiting.clear()
            self._hang_up(asked)
        if self._task is None and self.state is not State.LEAVING:
            self._enter(State.IDLE)

    def _break_off(self, error: Exception) -> None:
        """Tell what is wrong with a request that cannot be read on, and hang up."""
        if self._task is not None or self._waiting:  # others come first; this one hears nothing
            self.abort()
            return
        self._asked.refused = error
        self._serve(self._asked, keeps_alive=False)

    def _hang_up(self, asked: Asked) -> None:
        """Close at once only who has sent all: who is reset while sending reads no answer."""
        if asked.refused is None or self._transport is None:
            self.close()
            return
        self._enter(State.LEAVING)
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _enter(self, state: State) -> None:
        self.state = state
        self._since = asyncio.get_running_loop().time()

    def _count_head(self, size: int) -> None:
        self._head_size += size
        if self._head_size > _MAX_HEAD_BYTES:
            remedy = f"must be at most {_MAX_HEAD_BYTES} bytes"
            raise MalformedHead("head", f"{self._head_size} bytes or more", remedy)

    def _too_large(self, size: int | str) -> BodyTooLarge:
        most = self._config.max_body_bytes
        remedy = f"at most {most} are taken: send less, or raise max_body_bytes"
        return BodyTooLarge("body", f"{size} bytes or more", remedy)
