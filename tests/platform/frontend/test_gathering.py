"""What is written in one turn of the event loop leaves in one piece."""

import asyncio

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from stafette.platform.frontend.gathering import GatheringProtocol, GatheringTransport


class FakeTransport:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


async def test_writes_of_one_turn_leave_together():
    inner = FakeTransport()
    transport = GatheringTransport(inner, asyncio.get_running_loop())

    transport.write(b"head")
    transport.write(b"text")
    at_once = list(inner.sent)
    await asyncio.sleep(0)
    transport.write(b"more")
    await asyncio.sleep(0)

    assert at_once == []
    assert inner.sent == [b"headtext", b"more"]


async def test_much_does_not_wait():
    inner = FakeTransport()
    transport = GatheringTransport(inner, asyncio.get_running_loop())

    transport.write(b"head")
    transport.write(b"x" * 100_000)

    assert inner.sent == [b"head" + b"x" * 100_000]


async def test_a_stream_s_part_is_sent_at_once_but_never_before_what_waits():
    inner = FakeTransport()
    transport = GatheringTransport(inner, asyncio.get_running_loop())

    transport.write_now(b"part")
    transport.write(b"head")
    transport.write_now(b"first")
    at_once = list(inner.sent)
    await asyncio.sleep(0)

    assert at_once == [b"part"]
    assert inner.sent == [b"part", b"headfirst"]


class FakeCycle:
    """uvicorn's, of a response that has begun."""

    def __init__(self, **states: object) -> None:
        self.disconnected, self.chunked_encoding, self.response_complete = False, True, False
        vars(self).update(states)


def written_now(paused: bool = False, data: bytes = b"data", **states: object) -> list[bytes]:
    """Return what has been sent when a part was written, or was not."""
    protocol, inner = GatheringProtocol.__new__(GatheringProtocol), FakeTransport()
    protocol._gathering = GatheringTransport(inner, asyncio.new_event_loop())
    protocol._gathering._loop.close()
    protocol.flow = FlowControl(inner)
    protocol.flow.write_paused = paused
    taken = protocol._write_now(FakeCycle(**states), data)
    assert taken == bool(inner.sent)
    return inner.sent


def test_a_part_is_a_chunk():
    assert written_now(data=b"0123456789abcdef") == [b"10\r\n0123456789abcdef\r\n"]


def test_an_empty_part_is_not_the_chunk_that_ends_a_response():
    assert written_now(data=b"") == []


@pytest.mark.parametrize(
    "states",
    [
        {"paused": True},  # the client reads too slowly: the answer is to wait
        {"disconnected": True},
        {"chunked_encoding": None},  # HEAD
        {"chunked_encoding": False},  # of a known length
        {"response_complete": True},
    ],
)
def test_what_needs_more_than_a_chunk_is_left_to_uvicorn(states):
    assert written_now(**states) == []


async def test_closing_sends_what_waits():
    inner = FakeTransport()
    transport = GatheringTransport(inner, asyncio.get_running_loop())

    transport.write(b"last words")
    transport.close()
    await asyncio.sleep(0)

    assert inner.sent == [b"last words"]
    assert transport.is_closing()


def test_whoever_begins_to_answer_a_client_that_has_left_hears_of_it():
    protocol, heard = GatheringProtocol.__new__(GatheringProtocol), []
    protocol._is_lost = True

    protocol._on_hang_up(lambda: heard.append("gone"))

    assert heard == ["gone"]
