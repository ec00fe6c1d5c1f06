"""What has come for one request and was not read yet."""

import asyncio

from stafette.workers.errors import EngineError
from stafette.workers.request import OutputDelta
from stafette.workers.service.deliveries import Deliveries


class Inbox:
    """Hands over all that has come since the last look; an error comes after what came before."""

    def __init__(self, deliveries: Deliveries) -> None:
        self._deliveries = deliveries
        self._deltas: list[OutputDelta] = []
        self._error: EngineError | None = None
        self._news: asyncio.Future[None] | None = None  # of the one who waits

    @property
    def unread(self) -> int:
        return len(self._deltas)

    def put(self, delta: OutputDelta) -> None:
        self._deltas.append(delta)
        self._wake()

    def fail(self, error: EngineError) -> None:
        self._error = self._error or error
        self._wake()

    async def next(self) -> list[OutputDelta]:
        while not self._deltas:
            if self._error is not None:
                raise type(self._error)(*self._error.args)
            self._news = self._deliveries.reader()
            await self._news
        deltas, self._deltas = self._deltas, []
        return deltas

    def _wake(self) -> None:
        if self._news is not None:
            news, self._news = self._news, None
            self._deliveries.wake(news)
