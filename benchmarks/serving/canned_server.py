"""Answers that are ready bytes, of 1, 4, 50, 150 or 200 tokens: what a client can take at most."""

import asyncio
import json
from typing import cast

import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = b'data: {"object":"chat.completion.chunk","choices":[{"delta":{"content":" tok"}}]}\n\n'
_TOKENS = (1, 4, 50, 150, 200)


def answer(max_tokens: int) -> bytes:
    chunk = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
    return _HEAD + chunk * max_tokens + b"0\r\n\r\n"


_ANSWERS = {max_tokens: answer(max_tokens) for max_tokens in _TOKENS}


class Canned(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        wanted = json.loads(data.partition(b"\r\n\r\n")[2])["max_tokens"]
        self._transport.write(_ANSWERS[wanted])


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Canned, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
