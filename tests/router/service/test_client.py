"""The client keeps connections, opens new ones where they broke, and tells what went wrong."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from stafette.kvtransfer.errors import InvalidValue
from stafette.router.service.client import RouterClient, ServiceLost

PROMPT = list(range(64))


@asynccontextmanager
async def talking(answer: bytes | None):
    """Something else than the service, which says this, or nothing, to one client."""
    ended = asyncio.Event()

    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.wait_for(ended.wait(), 30)


async def test_one_connection_serves_one_request_after_the_other(serve):
    served = await serve()
    await served.client.register("a", 16)
    first = served.client._idle[0]

    for number in range(10):
        await served.client.select(f"r{number}", PROMPT)

    assert served.client._idle == [first]


async def test_requests_at_once_have_a_connection_each_and_their_own_answers(serve):
    served = await serve()
    await served.client.register("a", 16)

    names = [f"r{number}" for number in range(50)]
    placed = await asyncio.gather(*(served.client.select(name, PROMPT) for name in names))

    assert [one.request_id for one in placed] == names
    assert 1 < len(served.client._idle) <= 50


async def test_a_connection_that_was_closed_meanwhile_is_made_again(serve):
    served = await serve()
    await served.client.register("a", 16)
    served.client._idle[0]._transport.abort()

    assert (await served.client.select("r", PROMPT)).decode == "a"


async def test_a_request_that_is_given_up_leaves_no_answer_for_the_next(serve, clock):
    served = await serve(clock=clock, admission={"max_target_queue_ms": 0})
    await served.client.register("a", 16)
    await served.client.select("first", PROMPT)
    waiting = asyncio.create_task(served.client.select("second", PROMPT))
    while not len(served.service.requests.room):
        await asyncio.sleep(0.001)

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    assert (await served.client.get("/health")) == {"status": "ok"}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}",
        b"x" * 100_000,
    ],
)
async def test_whatever_else_answers_is_no_router(answer):
    async with talking(answer) as url, RouterClient(url) as client:
        with pytest.raises(ServiceLost, match=f"the router at {url} does not answer"):
            await client.workers()


async def test_nobody_there_is_told_at_once(serve):
    served = await serve()
    url = served.url.rpartition(":")[0]

    with pytest.raises(ServiceLost, match="does not answer"):
        await RouterClient(f"{url}:1").workers()


async def test_an_answer_that_does_not_come_is_not_waited_for():
    async with talking(None) as url, RouterClient(url, timeout_s=0.05) as client:
        with pytest.raises(ServiceLost, match="no answer within 0.05 s"):
            await client.workers()


@pytest.mark.parametrize("url", ["", "127.0.0.1:8090", "ftp://x", "http://"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(InvalidValue, match="must be http://HOST:PORT"):
        RouterClient(url)
