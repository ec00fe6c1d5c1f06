"""The service without its HTTP: one router, its workers and requests, its peers, one clock."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict

from stafette.kvtransfer.event_stream.subscriber import EventSubscriber
from stafette.router.errors import InvalidValue
from stafette.router.hashing import Hashers, PromptHasher
from stafette.router.router import KvRouter
from stafette.router.service.config import RouterServiceConfig, Secrets
from stafette.router.service.explaining import explain
from stafette.router.service.gossip import Gossip
from stafette.router.service.requests import Requests
from stafette.router.service.waiting import WaitingRoom
from stafette.router.service.workers import Workers
from stafette.router.sharing import Sharing

logger = logging.getLogger(__name__)

_TICK_S = 0.05


class RouterService:
    """Used by the event loop's thread alone; it works inside of `async with running()`."""

    def __init__(
        self,
        config: RouterServiceConfig,
        secrets: Secrets,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.clock = clock
        self.started_at = clock()
        self.gossip = Gossip(config.gossip, secrets.key, clock) if config.gossip.wanted else None
        hashers = Hashers(secrets.key, config.service.block_size)
        sharing = Sharing(self.gossip.publish if self.gossip else None)
        self.router = KvRouter(hashers, config.router, clock, sharing)
        self.prompts = PromptHasher(hashers, config.service.max_sessions)
        self.events = EventSubscriber(self.router.index, config.events)
        self.workers = Workers(self.router, self.events, clock)
        room = WaitingRoom(self.router, config.admission, clock, config.service.max_wait_s)
        self.requests = Requests(self.router, self.prompts, room, clock)

    def explain(self, query: str) -> dict[str, object]:
        return explain(self.router, query, self.clock())

    def describe(self, query: str) -> dict[str, object]:
        """Return the workers, the peers, and what the index holds."""
        if query:
            raise InvalidValue("query", query, "is not known here: leave it out")
        return {
            "workers": self.workers.describe(),
            "index": asdict(self.router.index.stats()),
            "events": asdict(self.router.index.counters),
            "streams": asdict(self.events.counters()),
            "reservations": len(self.router.sharing.own),
            "waiting": len(self.requests.room),
            "routers": self.gossip.peers if self.gossip else [],
        }

    def tick(self) -> None:
        """Do what time brings: leases that end, workers that are silent, requests that wait."""
        now = self.clock()
        self.workers.tick(now)
        self.requests.tick(now)
        if self.gossip is not None:
            self.gossip.tick(now)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        if self.gossip is not None:
            self.gossip.start(self.router, loop)
        ticking = asyncio.create_task(self._keep_ticking())
        try:
            yield
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)
            self.close(loop)

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        self.requests.room.close()
        if self.gossip is not None:
            self.gossip.close(loop)
        self.events.close()
        self.router.close()

    async def _keep_ticking(self) -> None:
        while True:
            try:
                self.tick()
            except Exception:  # one tick that fails must not end all
                logger.exception("a tick failed")
            await asyncio.sleep(_TICK_S)
