"""A client that costs little: raw sockets, answers that are counted instead of parsed."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import cast

_LAST_CHUNK = b"0\r\n\r\n"  # no event ends like this
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    tokens: int
    first_s: float
    total_s: float
    num_reads: int


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self, mark: bytes) -> None:
        self._mark = mark  # what stands for one token
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Answer] | None = None
        self._parts: list[bytes] = []
        self._tail = b""
        self._sent = self._first = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base

    def data_received(self, data: bytes) -> None:
        if not self._parts:
            self._first = time.perf_counter() - self._sent
        self._parts.append(data)
        self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
        if self._tail == _LAST_CHUNK and self._done is not None:
            whole = b"".join(self._parts)
            total = time.perf_counter() - self._sent
            tokens = whole.count(self._mark)
            self._done.set_result(Answer(tokens, self._first, total, len(self._parts)))

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error or ConnectionError("the server closed"))

    async def ask(self, request: bytes) -> Answer:
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._parts = []
        self._sent = time.perf_counter()
        self._transport.write(request)
        async with asyncio.timeout(_TIMEOUT_S):
            return await self._done

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def connect(port: int, mark: bytes) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(mark), "127.0.0.1", port)
    return connection


def chat_request(max_tokens: int, model: str = "mock") -> bytes:
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": "What is a relay race?"}],
            "max_tokens": max_tokens,
            "stream": True,
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def one_by_one(port: int, mark: bytes, count: int, max_tokens: int) -> list[Answer]:
    connection = await connect(port, mark)
    request = chat_request(max_tokens)
    answers = [await connection.ask(request) for _ in range(count)]
    connection.close()
    return answers


async def together(
    port: int, mark: bytes, clients: int, each: int, max_tokens: int
) -> tuple[list[Answer], float]:
    """Return the answers of clients that ask again and again, and how long all took."""
    connections = [await connect(port, mark) for _ in range(clients)]
    request = chat_request(max_tokens)

    async def client(connection: Connection) -> list[Answer]:
        return [await connection.ask(request) for _ in range(each)]

    began = time.perf_counter()
    answers = await asyncio.gather(*map(client, connections))
    took = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return [answer for own in answers for answer in own], took
