"""What is to be sent on a stream, and who does not take it."""

import asyncio

import pytest

from stafette.workers.request import OutputDelta
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
