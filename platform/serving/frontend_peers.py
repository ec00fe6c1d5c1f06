"""The frontends of a fleet hear of each other's reservations: else they herd onto one worker."""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress

from stafette.router.router import KvRouter
from stafette.router.service.gossip import Gossip, GossipConfig


class FrontendPeers:
    """Used by the event loop that `start` was called in."""

    def __init__(self, name: str, host: str, key: bytes) -> None:
        self._config = GossipConfig(name=name, address=f"tcp://{host}:*")
        self.gossip = Gossip(self._config, key, time.monotonic)
        self._met = {self.gossip.address}
        self._ticking: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where other frontends hear this one."""
        return self.gossip.address

    def start(self, router: KvRouter) -> None:
        self.gossip.start(router, asyncio.get_running_loop())
        self._ticking = asyncio.create_task(self._tick(), name="gossip")

    def meet(self, addresses: Iterable[str]) -> None:
        """Listen to these from now on; one that has gone is forgotten when it is silent."""
        for address in addresses:
            if address not in self._met:
                self._met.add(address)
                self.gossip.meet(address)

    async def close(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticking
        self.gossip.close(asyncio.get_running_loop())

    async def _tick(self) -> None:
        while True:
            self.gossip.tick(time.monotonic())
            await asyncio.sleep(self._config.beat_s / 2)
