"""One HTTP request and its response, on plain ASGI: nothing between the code and the server."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from stafette.platform.frontend.errors import ClientGone, TimedOut, TooLarge

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]
HangUp = Callable[[], object]

# In the state that our own listener gives to each request; other servers do without.
# Called with what is to be called when the client hangs up, and with None when that is of no
# interest any more. Other servers tell it only to whoever waits.
ON_HANG_UP = "stafette.on_hang_up"
# Called with a part of a stream: whether it could be written at once, without a message for it.
WRITE_NOW = "stafette.write_now"

JSON: Headers = ((b"content-type", b"application/json"),)
EVENTS: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the events back
)


class Exchange:
    """What came, and how it is answered. `extra_headers` go with every response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = _own_path(scope)
        self.query: str = scope.get("query_string", b"").decode("latin-1")
        self.request_id = ""
        self.route = ""  # the path as the API has it; "": none
        self.answer_id = ""  # what the client sees as the answer's id
        self.arrived = time.perf_counter()
        self.tenant = ""  # the name of its API key
        self.status = 0  # once the response has begun
        self.extra_headers: list[tuple[bytes, bytes]] = []
        self._headers: Headers = scope["headers"]
        self._receive = receive
        self._send = send
        state = scope.get("state", {})
        self._on_hang_up: Callable[[HangUp | None], None] | None = state.get(ON_HANG_UP)
        self._write_now: Callable[[bytes], bool] = state.get(WRITE_NOW, _cannot)

    @property
    def started(self) -> bool:
        """Whether the response has begun: its status cannot be changed any more."""
        return self.status != 0

    def header(self, name: str) -> str | None:
        wanted = name.encode()
        for key, value in self._headers:
            if key == wanted:
                return value.decode("latin-1")
        return None

    async def body(self, max_bytes: int, timeout_s: float) -> bytes:
        """Return the whole body; TooLarge as soon as it is seen to be too long."""
        _check_length(self.header("content-length"), max_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._read(max_bytes)
        except TimeoutError:
            message = f"the request's body did not arrive within {timeout_s:g} s: send it faster"
            raise TimedOut(message, code="body_timeout") from None

    async def respond(self, status: int, body: bytes, headers: Headers = JSON) -> None:
        """Send a whole response."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [*headers, length])
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def respond_json(self, value: object, status: int = 200) -> None:
        await self.respond(status, json.dumps(value, ensure_ascii=False).encode())

    async def start_events(self) -> None:
        """Begin a stream of server-sent events."""
        await self._start(200, EVENTS)

    def write_now(self, data: bytes) -> bool:
        """Send a part of a stream if that needs no waiting; else use `write`."""
        return self._write_now(data)

    async def write(self, data: bytes) -> None:
        """Send a part of a stream; waits while the client reads too slowly."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    @asynccontextmanager
    async def while_connected(self) -> AsyncIterator[None]:
        """Run what is inside; ClientGone, at once, when the client hangs up meanwhile.

        The body must have been read.
        """
        watch = _Watch(asyncio.current_task())
        stop = self._begin(watch)
        try:
            yield
        except asyncio.CancelledError:
            if watch.has_hung_up and watch.task.uncancel() == 0:
                raise ClientGone("the client has closed the connection") from None
            raise
        finally:
            stop()

    def _begin(self, watch: "_Watch") -> Callable[[], object]:
        """Begin to watch; return how that ends."""
        if self._on_hang_up is not None:
            self._on_hang_up(watch.hang_up)
            return partial(self._on_hang_up, None)
        return asyncio.create_task(self._wait_until_gone(watch)).cancel

    async def _wait_until_gone(self, watch: "_Watch") -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        watch.hang_up()

    async def _start(self, status: int, headers: Headers) -> None:
        self.status = status
        every = [*headers, *self.extra_headers]
        await self._send({"type": "http.response.start", "status": status, "headers": every})

    async def _read(self, max_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone("the client has closed the connection")
            part = message.get("body", b"")
            size += len(part)
            if size > max_bytes:
                raise _too_large(size, max_bytes)
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


def _cannot(data: bytes) -> bool:
    return False


class _Watch:
    """Cancels a task when the client hangs up."""

    __slots__ = ("has_hung_up", "task")

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        assert task is not None, "exchanges are answered in tasks"
        self.task = task
        self.has_hung_up = False

    def hang_up(self) -> None:
        self.has_hung_up = True
        self.task.cancel()


def _own_path(scope: Scope) -> str:
    """Return the path as the API knows it, without the prefix under which a server mounts it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/")) or "/"


def _check_length(header: str | None, max_bytes: int) -> None:
    if header is not None and header.isdigit() and int(header) > max_bytes:
        raise _too_large(int(header), max_bytes)


def _too_large(size: int, max_bytes: int) -> TooLarge:
    remedy = f"at most {max_bytes} are taken; send less, or raise max_body_bytes"
    return TooLarge(f"body = {size} bytes or more: {remedy}", param="body")


def encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
