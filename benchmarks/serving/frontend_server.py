"""A server with a mock engine, measured by frontend.py: `frontend_server.py CONTENDER STEP_S`.

stafette     the API as it is
fastapi      FastAPI with a StreamingResponse, pydantic for the request, json.dumps for each chunk
asgi         as little as an answer can be: the floor under both
"""

import asyncio
import itertools
import json
import socket
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import uvicorn
import uvloop

from stafette.platform.frontend.app import Frontend
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.generator import Hints, Status
from stafette.platform.frontend.served import Served
from stafette.platform.frontend.server import Server, listen
from stafette.workers.request import OutputDelta, Request
from stafette.workers.sampling.params import SamplingParams
from stafette.workers.weights.opening import open_tokenizer

TEXT = " tok"


class StepEngine:
    """Adds one token to every answer in each step; hands over what has come since the last look."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._streams: dict[int, _Stream] = {}
        self._ids = itertools.count()
        self._news = asyncio.Event()
        self._loop = asyncio.create_task(self._run())

    async def stream(
        self, request: Request, hints: Hints
    ) -> AsyncGenerator[list[OutputDelta], None]:
        stream = _Stream(request.request_id, request.params.max_tokens or 1)
        number = next(self._ids)
        self._streams[number] = stream
        self._news.set()
        try:
            while stream.unread or stream.left:
                yield await stream.next()
        finally:
            del self._streams[number]

    def placement(self, request_id: str) -> Mapping[str, Any] | None:
        return None

    def workers(self) -> list[dict[str, Any]]:
        return []

    def decisions(self, query: str) -> Mapping[str, Any]:
        return {"decisions": [], "counters": {}}

    def status(self) -> Status:
        return Status(num_running=len(self._streams))

    async def _run(self) -> None:
        while True:
            if not self._streams:
                self._news.clear()
                await self._news.wait()
            due = time.perf_counter() + self._step_s
            for stream in self._streams.values():
                stream.step()
            await asyncio.sleep(max(0.0, due - time.perf_counter()))


class _Stream:
    def __init__(self, request_id: str, left: int) -> None:
        self.left = left
        self.unread: list[OutputDelta] = []
        self._id = request_id
        self._news = asyncio.Event()

    def step(self) -> None:
        if self.left:
            self.left -= 1
            reason = None if self.left else "length"
            self.unread.append(OutputDelta(self._id, 0, [1], TEXT, finish_reason=reason))  # type: ignore[arg-type]
            self._news.set()

    async def next(self) -> list[OutputDelta]:
        await self._news.wait()
        self._news.clear()
        unread, self.unread = self.unread, []
        return unread


def stafette_app(engine: StepEngine) -> Any:
    config = FrontendConfig(port=0)
    served = Served.of(config, "mock", open_tokenizer("smollm2"), 8192)
    return Frontend(served, engine, config)


def fastapi_app(engine: StepEngine) -> Any:
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse
    from pydantic import BaseModel

    class Body(BaseModel):
        model: str
        messages: list[dict[str, str]]
        max_tokens: int
        stream: bool

    async def chat(body: Body) -> StreamingResponse:
        return StreamingResponse(events(body.max_tokens), media_type="text/event-stream")

    async def events(max_tokens: int) -> AsyncIterator[str]:
        async for deltas in engine.stream(step_request(max_tokens), Hints()):
            for delta in deltas:
                choice = {"index": 0, "delta": {"content": delta.text}, "finish_reason": None}
                chunk = {"object": "chat.completion.chunk", "model": "mock", "choices": [choice]}
                yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"

    chat.__annotations__["body"] = Body
    app = FastAPI()
    app.post("/v1/chat/completions")(chat)
    return app


def asgi_app(engine: StepEngine) -> Any:
    async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] != "http":
            return
        body = json.loads((await receive())["body"])
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for deltas in engine.stream(step_request(body["max_tokens"]), Hints()):
            text = "".join(f"data: {delta.text}\n\n" for delta in deltas).encode()
            await send({"type": "http.response.body", "body": text, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    return app


def step_request(max_tokens: int) -> Request:
    params = SamplingParams(max_tokens=max_tokens)
    return Request(request_id="mock", prompt_token_ids=[1], params=params)


APPS = {"stafette": stafette_app, "fastapi": fastapi_app, "asgi": asgi_app}


async def main(contender: str, step_s: float) -> None:
    app = APPS[contender](StepEngine(step_s))
    listener = listen(FrontendConfig(port=0))

    def started() -> None:
        print(listener.getsockname()[1], flush=True)

    if isinstance(app, Frontend):
        await Server(app).run(listener, started)
    else:
        await _plain(app, listener, started)


async def _plain(app: Any, listener: socket.socket, started: Callable[[], None]) -> None:
    config = uvicorn.Config(app, http="httptools", access_log=False, log_config=None)
    started()
    await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], float(sys.argv[2])))
