"""What has come for one request and was not read yet."""

import asyncio

from stafette.workers.errors import EngineError
from stafette.workers.request import OutputDelta


class Inbox:
    """Hands over all that has come since the last look; an error comes after what came before."""

    def __init__(self) -> None:
        self._deltas: list[OutputDelta] = []
        self._error: EngineError | None = None
        self._news = asyncio.Event()

    def put(self, delta: OutputDelta) -> None:
        self._deltas.append(delta)
        self._news.set()

    def fail(self, error: EngineError) -> None:
        self._error = self._error or error
        self._news.set()

    async def next(self) -> list[OutputDelta]:
        await self._news.wait()
        self._news.clear()
        deltas, self._deltas = self._deltas, []
        if not deltas and self._error is not None:
            raise type(self._error)(*self._error.args)
        if self._error is not None:
            self._news.set()
        return deltas
