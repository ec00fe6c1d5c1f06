"""A client of the service, for asyncio: msgpack over keep-alive connections, nothing installed.

async with RouterClient("http://127.0.0.1:8090", token) as router:
    placed = await router.select("r1", token_ids=tokens, model="m", ttl_s=30)
    await router.first_token("r1", ttft_ms=81.0)
    await router.free("r1", output_tokens=311)
"""

import asyncio
import json
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from stafette.kvtransfer.blocks import TokenIds, token_words
from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import pack, unpack
from stafette.router.errors import InvalidValue, RouterError
from stafette.router.service.codec import MSGPACK
from stafette.router.service.connection import Connection, Reply

_PREFIX = "/v1/router"
_MAX_ANSWER_BYTES = 256 << 20


class ServiceLost(RouterError):
    """Nobody answers there, or what came back is no answer of the service."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return f"the router at {self.url} does not answer: {self.reason}"


class Refused(RouterError):
    """The service's own error: `code` and `details` say what was wrong, and what to do."""

    def __init__(self, status: int, details: Mapping[str, Any]) -> None:
        super().__init__(status, dict(details))
        self.status = status
        self.details = dict(details)
        self.code = str(details.get("code", ""))
        self.retry_after_s: float | None = details.get("retry_after_s")

    def __str__(self) -> str:
        remedy = self.details.get("remedy")
        told = str(self.details.get("message", self.status))
        return told if not remedy or str(remedy) in told else f"{told}; {remedy}"


class Selected(NamedTuple):
    request_id: str
    decode: str
    prefill: str | None
    source: Mapping[str, Any] | None
    cached_tokens: int
    ttft_ms: float
    explain: Mapping[str, Any] | None = None


class RouterClient:
    """Used by one event loop. As many connections are kept as there were requests at once."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout_s: float = 90.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidValue("url", url, "must be http://HOST:PORT or https://HOST:PORT")
        self.url = url
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._base = parts.path.rstrip("/")
        default_tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._tls = tls or default_tls
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self._head = f"Host: {parts.netloc}\r\nAccept: {MSGPACK}\r\n{authorization}"

    async def __aenter__(self) -> "RouterClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Break what is open. Safe to call twice."""
        while self._idle:
            self._idle.pop().close()

    async def select(
        self, request_id: str, token_ids: TokenIds | None = None, **options: Any
    ) -> Selected:
        """Return where a request goes; the options are those of `messages.Select`."""
        if token_ids is not None:
            options["token_ids"] = token_words(token_ids)
        return Selected(**await self.post("select", request_id=request_id, **options))

    async def reserve(self, request_id: str, **options: Any) -> Selected:
        return Selected(**await self.post("reserve", request_id=request_id, **options))

    async def first_token(self, request_id: str, **outcome: Any) -> None:
        await self.post("first_token", request_id=request_id, **outcome)

    async def progress(self, request_id: str, output_tokens: int) -> None:
        await self.post("progress", request_id=request_id, output_tokens=output_tokens)

    async def free(self, request_id: str, output_tokens: int | None = None) -> None:
        await self.post("free", request_id=request_id, output_tokens=output_tokens)

    async def heartbeat(self, client: str) -> int:
        """Renew the leases of all that this client holds; return how much that is."""
        return int((await self.post("heartbeat", client=client))["reservations"])

    async def register(self, worker: str, block_size: int, **options: Any) -> None:
        await self.post("register", worker=worker, block_size=block_size, **options)

    async def unregister(self, worker: str) -> None:
        await self.post("unregister", worker=worker)

    async def explain(self, last: int = 10, request_id: str | None = None) -> dict[str, Any]:
        asked = f"last={last}" if request_id is None else f"request={quote(request_id, safe='')}"
        return await self.get(f"{_PREFIX}/explain?{asked}")

    async def workers(self) -> dict[str, Any]:
        return await self.get(f"{_PREFIX}/workers")

    async def metrics(self) -> str:
        return (await self._ask(self._request("GET", "/metrics"))).body.decode()

    async def post(self, name: str, **fields: Any) -> dict[str, Any]:
        """Ask one of the service's paths by its last part; Refused with what it says."""
        sent = {key: value for key, value in fields.items() if value is not None}
        request = self._request("POST", f"{_PREFIX}/{name}", pack(sent))
        return self._answer(await self._ask(request))

    async def get(self, path: str) -> dict[str, Any]:
        return self._answer(await self._ask(self._request("GET", path)))

    def _request(self, method: str, path: str, body: bytes = b"") -> bytes:
        kind = f"Content-Type: {MSGPACK}\r\n" if body else ""
        line = f"{method} {self._base}{path} HTTP/1.1\r\n"
        return f"{line}{self._head}{kind}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def _ask(self, request: bytes) -> Reply:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._ask_somehow(request)
        except TimeoutError:
            raise ServiceLost(self.url, f"no answer within {self._timeout_s:g} s") from None
        except OSError as error:
            raise ServiceLost(self.url, str(error)) from None

    async def _ask_somehow(self, request: bytes) -> Reply:
        """Ask on a connection that is open; where that was closed meanwhile, on a fresh one."""
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._ask_on(connection, request)
            except ConnectionResetError:
                if not connection.unanswered:
                    raise
        loop = asyncio.get_running_loop()
        _, fresh = await loop.create_connection(
            lambda: Connection(_MAX_ANSWER_BYTES), self._host, self._port, ssl=self._tls
        )
        return await self._ask_on(fresh, request)

    async def _ask_on(self, connection: Connection, request: bytes) -> Reply:
        reply = await connection.ask(request)
        if connection.alive:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    def _answer(self, reply: Reply) -> dict[str, Any]:
        try:
            is_packed = reply.content_type == MSGPACK
            document = unpack(reply.body, len(reply.body)) if is_packed else json.loads(reply.body)
        except (MalformedMessage, ValueError):
            document = None
        if not isinstance(document, dict):
            raise ServiceLost(self.url, f"status {reply.status} with a body that is none of its")
        if reply.status != 200:
            error = document.get("error")
            raise Refused(reply.status, error if isinstance(error, dict) else {})
        return document
