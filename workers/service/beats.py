"""Both ends of a stream say now and then that they live, and notice when the other does not."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from stafette.kvtransfer.strict import pack
from stafette.workers.service import frames
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.outbox import Outbox

_NOTHING: Mapping[str, object] = {}


class Silence(Exception):
    """The other end has said nothing for too long."""


class Beats:
    def __init__(self, config: ServiceConfig, outbox: Outbox) -> None:
        self._config = config
        self._outbox = outbox
        self._last_heard = time.monotonic()
        self._news = asyncio.Event()

    def hurry(self) -> None:
        """Beat now: there is something to tell."""
        self._news.set()

    def heard(self) -> None:
        """Something has come."""
        self._last_heard = time.monotonic()

    async def run(self, load: Callable[[], Mapping[str, object]] = lambda: _NOTHING) -> None:
        """Beat until cancelled; Silence when the other end has fallen silent."""
        while True:
            before = time.monotonic()
            self._news.clear()
            self._outbox.put(pack([frames.BEAT, dict(load())]))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.beat_s):
                    await self._news.wait()
            now = time.monotonic()
            if now - before > self._config.silence_s:
                self._last_heard = now  # we were stopped ourselves: what has come lies unread
            if now - self._last_heard > self._config.silence_s:
                raise Silence(f"no word for {now - self._last_heard:.1f} s")
