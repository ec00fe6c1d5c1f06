"""A server of OpenAI's API that plays what a test tells it to, on a real socket."""

import asyncio
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from stafette.platform.bench.endpoints import read_endpoint


def chunk(text: str | None, usage: dict | None = None, **more) -> bytes:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}}]
    told = {"object": "chat.completion.chunk", "choices": choices} | more
    if usage:
        told["usage"] = usage
    return b"data: " + json.dumps(told).encode() + b"\n\n"


@dataclass
class PlayedServer:
    """`play` makes the pieces of an answer of a chat's body; an exception ends the connection."""

    play: Callable[[dict], list[bytes]]
    models: tuple[str, ...] = ("tiny",)
    status: int = 200
    gap_s: float = 0.0
    models_s: float = 0.0  # until it says which models it has
    dies_after: int | None = None  # chats
    bodies: list[dict] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    port: int = 0
    tls: ssl.SSLContext | None = None

    def start(self) -> "PlayedServer":
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        assert started.wait(10)
        return self

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)

    @property
    def endpoint(self):
        return read_endpoint(f"mine=127.0.0.1:{self.port}")

    @property
    def chats(self) -> int:
        return len(self.bodies)

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, ssl=self.tls)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._ended.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)

    async def _connected(self, reader, writer) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = 0
                for line in head.lower().splitlines():
                    if line.startswith("content-length:"):
                        length = int(line.partition(":")[2])
                body = await reader.readexactly(length)
                await self._answer(head.split()[1], body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, path: str, body: bytes, writer) -> None:
        self.paths.append(path)
        if path == "/v1/models":
            await asyncio.sleep(self.models_s)
            data = [{"id": name, "max_model_len": 4096} for name in self.models]
            return self._whole(writer, 200, {"data": data})
        if path == "/tokenize":
            return self._whole(writer, 200, {"count": len(json.loads(body)["prompt"].split())})
        if path not in ("/v1/chat/completions", "/v1/completions"):
            return self._whole(writer, 404, {"error": {"message": "no such path"}})
        told = json.loads(body)
        self.bodies.append(told)
        if self.dies_after is not None and self.chats > self.dies_after:
            self._ended.set()
            raise ConnectionResetError
        if self.status != 200:
            return self._whole(writer, self.status, {"error": {"message": "played"}})
        if not told["stream"]:
            return self._whole(writer, 200, json.loads(self.play(told)[0]))
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for piece in self.play(told):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(self.gap_s)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _whole(self, writer, status: int, told: dict) -> None:
        body = json.dumps(told).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)


def tokens(body: dict) -> list[bytes]:
    """Play an answer as a real server streams it: a role, a token an event, the usage, the end."""
    count = body.get("max_completion_tokens") or body["max_tokens"]
    said = body.get("messages") or [{"content": body["prompt"]}]
    prompt = sum(len(each["content"].split()) for each in said)
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": count,
        "prompt_tokens_details": {"cached_tokens": prompt // 2},
    }
    role = chunk("", role="assistant")
    return [role, *[chunk(" tok")] * count, chunk(None, usage), b"data: [DONE]\n\n"]
