"""Asks one endpoint: connections are kept open and used again, and none waits for ever."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stafette.platform.bench.endpoints import Endpoint
from stafette.platform.bench.wire import Head, OnBody, Wire, WireBroken
from stafette.platform.trust import Trust


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    key: str | None = field(default=None, repr=False)
    connect_s: float = 10.0
    request_s: float = 600.0  # of one answer, from the first byte sent to the last one read
    trust: Trust = Trust()


@dataclass(frozen=True, slots=True)
class Reply:
    head: Head
    body: bytes

    def json(self) -> Any:
        """Return what the body says; ValueError where it is no JSON."""
        return json.loads(self.body)


class Client:
    """Any number of questions at a time, a connection for each."""

    def __init__(self, endpoint: Endpoint, config: ClientConfig) -> None:
        self.endpoint = endpoint
        self.config = config
        self._idle: list[Wire] = []
        self._tls = config.trust.context() if endpoint.secure else None
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        head = f"host: {host}:{endpoint.port}\r\naccept: */*\r\n"
        if config.key:
            head += f"authorization: Bearer {config.key}\r\n"
        self._head = head.encode()

    async def get(self, path: str, within_s: float | None = None) -> Reply:
        """Ask about the server: `within_s` is its own patience, not that of an answer."""
        return await self._whole(b"GET", path, b"", within_s)

    async def post(self, path: str, body: Mapping[str, Any]) -> Reply:
        return await self._whole(b"POST", path, json.dumps(body).encode())

    async def ask(
        self, method: bytes, path: str, body: bytes, on_body: OnBody, within_s: float | None = None
    ) -> Head:
        """Hand the answer's pieces over as they come; raises OSError, TimeoutError."""
        request = self._request(method, path, body)
        async with asyncio.timeout(self.config.request_s if within_s is None else within_s):
            while True:
                used = bool(self._idle)
                wire = self._idle.pop() if used else await self._connect()
                try:
                    head = await wire.ask(request, on_body)
                except WireBroken as error:
                    if used and error.silent:  # it was closed while nobody used it
                        continue
                    raise
                if wire.reusable:
                    self._idle.append(wire)
                else:
                    wire.close()
                return head

    async def warm(self, connections: int) -> None:
        """Open so many connections: a first request should not measure that."""
        opened = [await self._connect() for _ in range(connections - len(self._idle))]
        self._idle.extend(opened)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _whole(
        self, method: bytes, path: str, body: bytes, within_s: float | None = None
    ) -> Reply:
        pieces: list[bytes] = []
        head = await self.ask(method, path, body, lambda piece, _: pieces.append(piece), within_s)
        return Reply(head, b"".join(pieces))

    async def _connect(self) -> Wire:
        loop = asyncio.get_running_loop()
        end = self.endpoint
        async with asyncio.timeout(self.config.connect_s):
            _, wire = await loop.create_connection(Wire, end.host, end.port, ssl=self._tls)
        return wire

    def _request(self, method: bytes, path: str, body: bytes) -> bytes:
        line = b"%b %b HTTP/1.1\r\n" % (method, (self.endpoint.path + path).encode())
        told = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        return line + self._head + (told if method == b"POST" else b"") + b"\r\n" + body
