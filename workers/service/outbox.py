"""What is to be sent on a stream: many put, one writer takes all that has come at once.

A write costs far more than what is in it, so messages that wait leave together.
"""

import asyncio
from collections.abc import Awaitable, Callable

from stafette.workers.request import OutputDelta
from stafette.workers.service import frames
from stafette.workers.service.joining import joined

Write = Callable[[bytes], Awaitable[object]]


class Overflow(Exception):
    """The other side does not read."""


class Outbox:
    """Deltas that wait are sent in one message, those of one request as one: a slow reader gets
    fewer, larger ones.
    """

    def __init__(self, max_unsent_bytes: int) -> None:
        self._max_unsent_bytes = max_unsent_bytes
        self._deltas: dict[int, list[OutputDelta]] = {}  # by request
        self._messages: list[bytes] = []
        self._unsent_bytes = 0
        self._news = asyncio.Event()
        self._overflown = asyncio.Event()

    def put_delta(self, number: int, delta: OutputDelta) -> None:
        self._deltas.setdefault(number, []).append(delta)
        self._count(_cost(delta))

    def put(self, message: bytes) -> None:
        self._flush()  # what was said before it arrives before it
        self._messages.append(message)
        self._count(len(message))

    async def run(self, write: Write) -> None:
        """Write until cancelled; Overflow when the other side reads too slowly, or not at all."""
        writing = asyncio.ensure_future(self._write_all(write))
        overflow = asyncio.ensure_future(self._overflown.wait())  # a write may never return
        try:
            await asyncio.wait((writing, overflow), return_when=asyncio.FIRST_COMPLETED)
            if overflow.done():
                raise Overflow
            await writing
        finally:
            writing.cancel()  # it ends with its stream at the latest: nobody waits for it
            overflow.cancel()

    async def _write_all(self, write: Write) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            self._flush()
            messages, self._messages, self._unsent_bytes = self._messages, [], 0
            for parcel in frames.parcels(messages):
                await write(parcel)

    def _flush(self) -> None:
        if self._deltas:
            waiting = [(number, joined(deltas)) for number, deltas in self._deltas.items()]
            self._messages.append(frames.pack_deltas(waiting))
            self._deltas = {}

    def _count(self, nbytes: int) -> None:
        self._unsent_bytes += nbytes
        if self._unsent_bytes > self._max_unsent_bytes:
            self._overflown.set()
        self._news.set()


def _cost(delta: OutputDelta) -> int:
    """About as many bytes as it holds here while it waits."""
    return 200 + 40 * len(delta.token_ids) * (1 + 10 * (delta.logprobs is not None))
