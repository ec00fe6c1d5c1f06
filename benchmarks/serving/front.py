"""A frontend's inside, without HTTP: it places requests on workers of a nursery."""

import asyncio
from collections.abc import Callable, Mapping

from benchmarks.serving.nursery import KEY, TOKEN
from stafette.kvtransfer.event_stream.subscriber import EventSubscriber
from stafette.platform.serving.dispatcher import DispatchConfig, Dispatcher
from stafette.platform.serving.fleet import FleetConfig, WorkerFleet
from stafette.router.hashing import Hashers, PromptHasher
from stafette.router.router import KvRouter, RouterConfig
from stafette.workers.service.config import ServiceConfig
from stafette.workers.weights.opening import open_tokenizer

MODEL = "smollm2"
BLOCK_SIZE = 16
_PATIENCE_S = 120.0


class Front:
    """Used by one event loop."""

    def __init__(self, name: str, config: RouterConfig | None = None) -> None:
        hashers = Hashers(KEY, BLOCK_SIZE)
        self.router = KvRouter(hashers, config)
        self.tokenizer = open_tokenizer(MODEL, None)
        self._events = EventSubscriber(self.router.index)
        service = ServiceConfig(token=TOKEN.encode(), beat_s=0.2, silence_s=3.0)
        self.fleet = WorkerFleet(name, FleetConfig(service=service), self.router, self._events)
        self.dispatcher = Dispatcher(
            DispatchConfig(model=MODEL), self.fleet, self.tokenizer, PromptHasher(hashers)
        )

    async def follow(self, addresses: Mapping[str, str]) -> None:
        """Return when all of them are connected."""
        self.fleet.follow(addresses)
        await until(lambda: self.fleet.clients.keys() >= addresses.keys())

    async def ask(self, worker: str, operation: str, payload: object = None) -> object:
        return await self.fleet.client(worker).ask(operation, payload, _PATIENCE_S)

    async def close(self) -> None:
        await self.fleet.close()
        self._events.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)
