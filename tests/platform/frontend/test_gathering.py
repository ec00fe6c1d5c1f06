"""What is written in one turn of the event loop leaves in one piece."""

import asyncio

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
