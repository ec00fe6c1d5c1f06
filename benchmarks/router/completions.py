"""A client that costs little: prompts of token ids, streamed completions, times as they come."""

import asyncio
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

_LAST_CHUNK = b"0\r\n\r\n"  # no event ends like this
_FIRST_EVENT = b"data: {"
_CACHED = re.compile(rb'"cached_tokens": ?(\d+)')
_TIMEOUT_S = 300.0

Address = tuple[str, int]


class BadAnswer(Exception):
    """The endpoint did not answer as it should; its words are in the message."""


@dataclass(frozen=True, slots=True)
class Answer:
    first_s: float  # until the first event
    total_s: float
    cached_tokens: int
    ended_at: float = 0.0  # of whichever clock


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Answer] | None = None
        self._parts: list[bytes] = []
        self._sent = self._first = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base

    def data_received(self, data: bytes) -> None:
        if not self._first and _FIRST_EVENT in data:
            self._first = time.perf_counter() - self._sent
        self._parts.append(data)
        done = self._done
        if done is None or done.done():
            return
        ended = b"".join(self._parts[-len(_LAST_CHUNK) :]).endswith(_LAST_CHUNK)  # perhaps in parts
        if ended or not self._first:
            whole = b"".join(self._parts)
            if not whole.startswith(b"HTTP/1.1 200"):
                done.set_exception(BadAnswer(whole[:500].decode(errors="replace")))
            elif ended:
                cached = _CACHED.findall(whole)
                total = time.perf_counter() - self._sent
                done.set_result(Answer(self._first, total, int(cached[-1]) if cached else 0))

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error or ConnectionError("the server closed"))

    async def ask(self, request: bytes) -> Answer:
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._parts, self._first = [], 0.0
        self._sent = time.perf_counter()
        self._transport.write(request)
        async with asyncio.timeout(_TIMEOUT_S):
            return await self._done

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def connect(address: Address) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, *address)
    return connection


def completion(model: str, prompt: Sequence[int], max_tokens: int) -> bytes:
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: benchmark\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\n"
    )
    own = "".join(f"{name}: {value}\r\n" for name, value in authorization().items())
    return f"{head}{own}\r\n".encode() + data


def authorization() -> dict[str, str]:
    """Return the header with the API key of STAFETTE_API_KEY, where there is one."""
    key = os.environ.get("STAFETTE_API_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}


class Client:
    """Sends each request when it is due, on a connection that is idle or a new one."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[Connection] = []
        self._all: list[Connection] = []

    async def ask(self, request: bytes, wait_s: float) -> Answer:
        await asyncio.sleep(wait_s)
        if self._idle:
            connection = self._idle.pop()
        else:
            connection = await connect(self._address)
            self._all.append(connection)
        answer = await connection.ask(request)
        self._idle.append(connection)
        return answer

    def close(self) -> None:
        for connection in self._all:
            connection.close()


async def together(
    address: Address, requests: Sequence[bytes], times: Sequence[float]
) -> tuple[list[Answer], float]:
    """Send each request at its time; return the answers and how long all took."""
    client, began = Client(address), time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            pairs = zip(requests, times, strict=True)
            tasks = [group.create_task(client.ask(*pair)) for pair in pairs]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    finally:
        client.close()
    return [task.result() for task in tasks], time.perf_counter() - began
