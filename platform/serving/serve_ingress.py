"""The API behind Ray Serve's proxies, for small set-ups: two more hops for every event.

Serve calls it in its own event loop, the API lives in another; each waits for the other there.
"""

import asyncio

from stafette.platform.frontend.app import Frontend
from stafette.platform.frontend.asgi import Message, Receive, Scope, Send
from stafette.platform.serving.loop_thread import LoopThread


class Forwarder:
    """An ASGI application in Serve's loop that stands for the API in its own."""

    def __init__(self, app: Frontend, loop: LoopThread) -> None:
        self._app = app
        self._loop = loop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the API's own listener has begun and ends its life
            await _acknowledge(receive, send)
            return
        home = asyncio.get_running_loop()

        async def receive_there() -> Message:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_of(receive), home))

        async def send_there(message: Message) -> None:
            future = asyncio.run_coroutine_threadsafe(_to(send, message), home)
            await asyncio.wrap_future(future)

        await self._loop.run(self._app(scope, receive_there, send_there))


async def _of(receive: Receive) -> Message:
    return await receive()


async def _to(send: Send, message: Message) -> None:
    await send(message)


async def _acknowledge(receive: Receive, send: Send) -> None:
    """Take part in the lifespan, whose events are of no interest here."""
    while True:
        message = await receive()
        kind = message["type"]
        if kind in ("lifespan.startup", "lifespan.shutdown"):
            await send({"type": f"{kind}.complete"})
        if kind != "lifespan.startup":
            return
