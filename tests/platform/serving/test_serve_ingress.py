"""The API behind Serve's proxies: called in one event loop, living in another."""

import asyncio
import threading

import pytest

from stafette.platform.serving.loop_thread import LoopThread
from stafette.platform.serving.serve_ingress import Forwarder

PATIENCE_S = 30


@pytest.fixture
def there():
    loop = LoopThread("there")
    yield loop
    loop.stop()


class Echo:
    """Streams back what it receives; notes in which thread it ran, and how it ended."""

    def __init__(self) -> None:
        self.thread = ""
        self.ended_by = None

    async def __call__(self, scope, receive, send):
        self.thread = threading.current_thread().name
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (message := await receive())["type"] == "http.request":
            await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        self.ended_by = message["type"]


class Client:
    """An ASGI server's side of one exchange, in this loop."""

    def __init__(self, *messages) -> None:
        self._messages = list(messages)
        self.sent = []
        self.thread = threading.current_thread().name

    async def receive(self):
        assert threading.current_thread().name == self.thread
        return self._messages.pop(0)

    async def send(self, message):
        assert threading.current_thread().name == self.thread
        self.sent.append(message)


async def test_a_request_is_answered_in_the_other_loop_and_streamed_in_this_one(there):
    echo = Echo()
    parts = [{"type": "http.request", "body": each} for each in (b"one", b"two")]
    client = Client(*parts, {"type": "http.disconnect"})

    async with asyncio.timeout(PATIENCE_S):
        await Forwarder(echo, there)({"type": "http"}, client.receive, client.send)

    assert [message.get("body") for message in client.sent] == [None, b"one", b"two"]
    assert (echo.thread, echo.ended_by) == ("there", "http.disconnect")


async def test_a_client_that_is_given_up_here_ends_the_answer_there(there):
    begun, cancelled = threading.Event(), threading.Event()

    async def endless(scope, receive, send):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    client = Client()
    serving = asyncio.create_task(
        Forwarder(endless, there)({"type": "http"}, client.receive, client.send)
    )
    assert await asyncio.to_thread(begun.wait, PATIENCE_S)

    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving

    assert await asyncio.to_thread(cancelled.wait, PATIENCE_S)


async def test_the_lifespan_of_serves_server_is_answered_and_nothing_more(there):
    client = Client({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})

    await Forwarder(Echo(), there)({"type": "lifespan"}, client.receive, client.send)

    kinds = [message["type"] for message in client.sent]
    assert kinds == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
