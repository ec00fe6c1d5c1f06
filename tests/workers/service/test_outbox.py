"""What is to be sent on a stream, and who does not take it."""

import asyncio

import pytest

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import pack
from stafette.workers.request import OutputDelta
from stafette.workers.service import frames
from stafette.workers.service.outbox import Outbox, Overflow


async def test_a_write_that_never_returns_does_not_hide_that_too_much_waits():
    outbox, begun = Outbox(max_unsent_bytes=10_000), asyncio.Event()

    async def never(message: bytes) -> None:
        begun.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(outbox.run(never))
    outbox.put_delta(0, OutputDelta("a", 0, [1], ""))
    await begun.wait()
    for token in range(100):  # more than 10,000 bytes behind it
        outbox.put_delta(0, OutputDelta("a", 0, [token], ""))

    with pytest.raises(Overflow):
        await asyncio.wait_for(running, 30)


async def test_what_a_write_raises_ends_it():
    outbox = Outbox(max_unsent_bytes=10_000)

    async def broken(message: bytes) -> None:
        raise ConnectionError("gone")

    outbox.put(b"message")

    with pytest.raises(ConnectionError, match="gone"):
        await asyncio.wait_for(outbox.run(broken), 30)


async def test_messages_that_wait_leave_together_and_large_ones_alone():
    outbox, sent = Outbox(1 << 20), []

    async def write(message: bytes) -> None:
        sent.append(message)

    large = pack(["ask", 3, "x", bytes(20_000)])
    given = [pack(["abort", 1]), pack(["abort", 2]), large, pack(["beat", {}])]
    for message in given:
        outbox.put(message)
    writer = asyncio.create_task(outbox.run(write))
    while len(sent) < 3:
        await asyncio.sleep(0)
    writer.cancel()

    read = [frames.read_messages(message, 1 << 20) for message in sent]
    assert [len(messages) for messages in read] == [2, 1, 1]
    assert [pack(message) for messages in read for message in messages] == given


@pytest.mark.parametrize("value", [[], {}, [["beat", {}], 1], [["beat", {}], None], "beat"])
def test_what_is_neither_a_message_nor_a_parcel_is_refused(value):
    with pytest.raises(MalformedMessage):
        frames.read_messages(pack(value), 1 << 20)
