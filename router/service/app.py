"""The service's HTTP: one ASGI application, which any ASGI server can run or mount."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

from stafette.router.errors import RouterError
from stafette.router.service import codec, messages
from stafette.router.service.errors import (
    BodyTooLarge,
    BodyTooSlow,
    Stopping,
    Told,
    TooBusy,
    Unauthorized,
    UnknownPath,
    WrongMethod,
    told,
)
from stafette.router.service.metrics import Exposition, Traffic
from stafette.router.service.reading import read_as
from stafette.router.service.service import RouterService

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = dict[str, object]

PREFIX = "/v1/router"
_METRICS = "/metrics"


class _Gone(Exception):
    """The client has hung up: nobody is left to be told."""


class _Post(NamedTuple):
    kind: type[Any]
    handle: Callable[[Any], Answer | Awaitable[Answer]]


class RouterApp:
    """`token` None: everybody may ask. It runs the service for as long as the server lives."""

    def __init__(self, service: RouterService, token: str | None) -> None:
        self.service = service
        self.traffic = Traffic()
        self.is_open = True
        self._token = None if token is None else f"Bearer {token}".encode()
        self._exposition = Exposition(service, self.traffic)
        self._posts = _posts(service)
        self._gets: Mapping[str, Callable[[str], Answer]] = {
            f"{PREFIX}/explain": service.explain,
            f"{PREFIX}/workers": service.describe,
        }
        self._open = {"/health": self._health, "/live": self._health, "/ready": self._ready}
        self.paths = frozenset([*self._posts, *self._gets, *self._open, _METRICS])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await _Exchange(scope, receive, send).run(self)
        else:
            await send({"type": "websocket.close", "code": 1003})

    def drain(self) -> None:
        """Take no new requests; those in flight go on, and those that wait are told to leave."""
        self.is_open = False
        self.service.requests.room.close()

    async def answer(self, exchange: "_Exchange") -> tuple[int, object]:
        """Return the status, and what is to be sent: a document, or text with its type."""
        method, path = exchange.method, exchange.path
        if path == _METRICS and method in ("GET", "HEAD"):
            return 200, self._exposition.render(exchange.header(b"accept"))
        if path in self._open and method in ("GET", "HEAD"):
            return 200, self._open[path]()
        self._check_token(exchange)
        get, post = self._gets.get(path), self._posts.get(path)
        if get is not None and method in ("GET", "HEAD"):
            return 200, get(exchange.query)
        if post is None or method != "POST":
            raise self._wrong(method, path)
        return 200, await self._post(exchange, post)

    async def _post(self, exchange: "_Exchange", post: _Post) -> Answer:
        config = self.service.config.service
        if not self.is_open:
            raise Stopping("path", exchange.path, "this router is about to end: ask another one")
        if self.traffic.in_flight >= config.max_in_flight:
            remedy = f"{config.max_in_flight} requests are under way, the most: come again"
            raise TooBusy("path", exchange.path, remedy)
        self.traffic.in_flight += 1
        try:
            as_msgpack = codec.is_msgpack(exchange.header(b"content-type"))
            body = await exchange.body(config.max_body_bytes, config.body_timeout_s)
            began = time.perf_counter()
            answer = post.handle(read_as(post.kind, codec.decode(body, as_msgpack)))
            if not isinstance(answer, dict):
                answer = await exchange.while_connected(answer)
            if post.kind is messages.Select:
                self.traffic.selected(time.perf_counter() - began)
            return answer
        finally:
            self.traffic.in_flight -= 1

    def _check_token(self, exchange: "_Exchange") -> None:
        if self._token is None:
            return
        sent = exchange.header(b"authorization").encode()
        scheme, _, token = sent.partition(b" ")
        if not hmac.compare_digest(scheme.title() + b" " + token.strip(), self._token):
            remedy = "must be `Bearer TOKEN`, with this service's token"
            raise Unauthorized("authorization", "(secret)" if sent else None, remedy)

    def _wrong(self, method: str, path: str) -> RouterError:
        if path in self._posts:
            return WrongMethod("method", method, "use POST")
        if path in self.paths:
            return WrongMethod("method", method, "use GET")
        known = ", ".join(sorted(self.paths))
        return UnknownPath("path", path, f"does not exist; there are {known}")

    def _health(self) -> Answer:
        return {"status": "ok"}

    def _ready(self) -> Answer:
        """503 while no requests should be sent here."""
        members = self.service.router.fleet.members.values()
        if not self.is_open:
            raise Stopping("path", "/ready", "this router is about to end: ask another one")
        if all(member.away for member in members):
            raise Stopping("workers", len(members), "none can take requests now: register one")
        return {"status": "ok"}

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self.service.running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.drain()
        await send({"type": "lifespan.shutdown.complete"})


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        path: str = scope["path"]
        self.path = path.removeprefix(scope.get("root_path", "").rstrip("/")) or "/"
        self.query = scope["query_string"].decode("latin-1")
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send

    def header(self, name: bytes) -> str:
        return self._headers.get(name, b"").decode("latin-1")

    async def run(self, app: RouterApp) -> None:
        """Answer it: whatever goes wrong here costs no other request."""
        code, extra = "ok", list[tuple[bytes, bytes]]()
        try:
            status, value = await app.answer(self)
        except _Gone:
            app.traffic.answers[self.path, "client_gone"] += 1
            return
        except Exception as error:
            answer: Told = told(error)
            if answer.status >= 500 and not isinstance(error, RouterError):
                logger.exception("%s %s failed", self.method, self.path)
            status, value, extra, code = answer.status, answer.document, answer.headers, answer.code
        app.traffic.answers[self.path if self.path in app.paths else "other", code] += 1
        body, content_type = value if isinstance(value, tuple) else self._encode(value)
        await self._respond(status, body, content_type, extra)

    async def body(self, max_bytes: int, timeout_s: float) -> bytes:
        """Return the whole body; BodyTooLarge as soon as it is seen to be too long."""
        length = self.header(b"content-length")
        if length.isdecimal() and int(length[:20]) > max_bytes:
            raise _too_large(length, max_bytes)
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > max_bytes:
                        raise _too_large(size, max_bytes)
                    if not message.get("more_body"):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            remedy = f"did not arrive within {timeout_s:g} s: send it faster"
            raise BodyTooSlow("body", f"{size} bytes", remedy) from None

    async def while_connected(self, answer: Awaitable[Answer]) -> Answer:
        """Wait for it as long as the client does."""
        task = asyncio.ensure_future(answer)
        watcher = asyncio.ensure_future(self._hung_up())
        try:
            await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _Gone
            return task.result()
        finally:
            for each in (task, watcher):
                each.cancel()
            await asyncio.gather(task, watcher, return_exceptions=True)

    async def _hung_up(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _encode(self, value: object) -> tuple[bytes, str]:
        content_type = self.header(b"content-type")
        came = any(kind in content_type for kind in codec.MSGPACKS)
        return codec.encode(value, codec.wants_msgpack(self.header(b"accept"), came))

    async def _respond(
        self, status: int, body: bytes, content_type: str, extra: list[tuple[bytes, bytes]]
    ) -> None:
        headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
            *extra,
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _posts(service: RouterService) -> Mapping[str, _Post]:
    workers, requests = service.workers, service.requests
    table: Mapping[str, tuple[type[Any], Callable[[Any], Answer | Awaitable[Answer]]]] = {
        "register": (messages.Register, workers.register),
        "unregister": (messages.Unregister, workers.unregister),
        "state": (messages.SetState, workers.set_state),
        "load": (messages.ReportLoad, workers.report_load),
        "steps": (messages.ReportSteps, workers.report_steps),
        "events": (messages.PushEvents, workers.push_events),
        "select": (messages.Select, requests.select),
        "reserve": (messages.Reserve, requests.reserve),
        "first_token": (messages.FirstToken, requests.first_token),
        "progress": (messages.Progress, requests.progress),
        "free": (messages.Free, requests.free),
        "heartbeat": (messages.Heartbeat, requests.heartbeat),
    }
    return {f"{PREFIX}/{name}": _Post(*entry) for name, entry in table.items()}


def _too_large(size: int | str, max_bytes: int) -> BodyTooLarge:
    remedy = f"at most {max_bytes} are taken: send less, or raise max_body_bytes"
    return BodyTooLarge("body", f"{size} bytes or more", remedy)
