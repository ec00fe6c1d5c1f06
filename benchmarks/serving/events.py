"""Server-sent events over HTTP, one connection for each request. ConnectionError: it broke."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

_DATA = b"data: "
_DONE = b"[DONE]"


class Refused(Exception):
    """Another status than 200."""

    def __init__(self, status: int, told: bytes) -> None:
        super().__init__(status, told)
        self.status = status


async def events(url: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Post a request, yield the events of its answer."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(_request(parts.path, json.dumps(body).encode()))
        status = await _status(reader)
        if status != 200:
            raise Refused(status, await reader.read())
        while (line := await reader.readline()).strip() != _DATA + _DONE:
            if not line:
                raise ConnectionError("the stream ended before its end")
            if line.startswith(_DATA):  # else the size of a chunk, or an empty line
                yield json.loads(line[len(_DATA) :])
    except asyncio.IncompleteReadError as error:
        raise ConnectionError("the stream ended before its end") from error
    finally:
        writer.close()


def _request(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _status(reader: asyncio.StreamReader) -> int:
    line = await reader.readline()
    if not line:
        raise ConnectionError("no answer")
    while (await reader.readline()).strip():
        pass
    return int(line.split()[1])
