"""Whole messages over TCP, however they are cut on the way; no end may harm the other."""

import asyncio

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stafette.kvtransfer.errors import MalformedMessage
from stafette.workers.service.streams.over_tcp import TcpWire
from stafette.workers.service.streams.wire import StreamEnded


class FakeTransport:
    def __init__(self) -> None:
        self.is_reading = True

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def is_closing(self) -> bool:
        return False


async def ends_of(max_bytes: int = 1 << 20) -> tuple[TcpWire, TcpWire, asyncio.Server]:
    """Return two ends of one connection."""
    accepted: list[TcpWire] = []

    def accept() -> TcpWire:
        accepted.append(TcpWire(max_bytes))
        return accepted[-1]

    loop = asyncio.get_running_loop()
    server = await loop.create_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    _, here = await loop.create_connection(lambda: TcpWire(max_bytes), "127.0.0.1", port)
    while not accepted:
        await asyncio.sleep(0.001)
    return here, accepted[0], server


@pytest.fixture
async def ends():
    here, there, server = await ends_of()
    yield here, there
    await here.close()
    await there.close()
    server.close()


def framed(*messages: bytes) -> bytes:
    return b"".join(len(each).to_bytes(4, "big") + each for each in messages)


async def read_all(parts: list[bytes]) -> list[bytes]:
    wire = TcpWire(1 << 20)
    for part in parts:
        wire.data_received(part)
    wire.eof_received()
    return [message async for message in wire]


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(0, 2_000), max_size=12))
@example([b"0123456789", b""], [16])  # in the second one's length
@settings(max_examples=300, deadline=None)
def test_messages_are_the_same_however_they_are_cut(messages, cuts):
    data = framed(*messages)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [data[a:b] for a, b in zip(places, places[1:], strict=False)]

    assert asyncio.run(read_all(parts)) == messages


async def test_a_message_that_is_cut_off_never_arrives():
    assert await read_all([framed(b"whole", b"cut off")[:-1]]) == [b"whole"]


async def test_messages_go_both_ways(ends):
    here, there = ends

    await here.write(b"ping")
    assert await there.read() == b"ping"
    await there.write(b"")
    assert await here.read() == b""


async def test_a_message_that_is_too_long_ends_the_stream_before_it_is_here():
    wire = TcpWire(max_bytes=10)

    wire.data_received(framed(b"0123456789") + (11).to_bytes(4, "big"))
    wire.data_received(b"01234567890")

    assert await wire.read() == b"0123456789"
    with pytest.raises(MalformedMessage, match="at most 10 bytes, not 11"):
        await wire.read()


async def test_who_gives_up_says_why_behind_what_it_said_before(ends):
    here, there = ends

    await here.write(b"last")
    await here.close("the engine is gone")

    assert await there.read() == b"last"
    for _ in range(2):
        with pytest.raises(StreamEnded, match="the engine is gone"):
            await there.read()
    with pytest.raises(ConnectionError):
        await here.write(b"more")


async def test_an_end_without_a_reason_is_just_an_end(ends):
    here, there = ends

    reading = asyncio.create_task(there.read())
    await here.close()

    assert await reading is None


async def test_whoever_waits_to_write_hears_that_the_other_end_has_gone(ends):
    here, there = ends
    there._transport.pause_reading()

    async def write_on() -> None:
        while True:
            await here.write(b"x" * 65_536)

    writing = asyncio.create_task(write_on())
    while here._writable is None:
        await asyncio.sleep(0.001)
    there.abort()

    with pytest.raises(ConnectionError):
        await writing


async def test_a_reader_that_falls_behind_lets_the_other_end_wait():
    wire, transport = TcpWire(1 << 20), FakeTransport()
    wire.connection_made(transport)

    wire.data_received(framed(*[b"x" * 30_000] * 4))
    paused = transport.is_reading
    for _ in range(4):
        await wire.read()

    assert (paused, transport.is_reading) == (False, True)
    assert wire._unread_bytes == 0


async def test_aborting_twice_is_one_abort(ends):
    here, there = ends

    here.abort()
    here.abort()

    assert await here.read() is None
    with pytest.raises((ConnectionError, AssertionError)):
        assert await there.read() is not None
