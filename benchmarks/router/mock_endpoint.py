"""The API before mock workers, in a process of its own: router, dispatcher, HTTP.

{"ask": "start", "addresses": {name: address}, "token": ..., "profile": {...}, "policy": ...}
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import uvloop

from benchmarks.common.answering import answer_lines
from benchmarks.router.mock_workers import BLOCK_SIZE, CLASS, KEY, MAX_MODEL_LEN, MODEL, flags
from stafette.kvtransfer.event_stream.subscriber import EventSubscriber
from stafette.platform.frontend.app import Frontend
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.served import Served
from stafette.platform.frontend.server import Server, listen
from stafette.platform.serving.dispatcher import DispatchConfig, Dispatcher
from stafette.platform.serving.fleet import FleetConfig, WorkerFleet
from stafette.platform.twin.config import prior
from stafette.router.hashing import Hashers, PromptHasher
from stafette.router.registry import PolicyConfig
from stafette.router.router import KvRouter, RouterConfig
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.service.config import ServiceConfig
from stafette.workers.weights.opening import open_tokenizer


class Endpoint:
    def __init__(self) -> None:
        self._serving: asyncio.Task[None] | None = None

    async def start(
        self,
        addresses: Mapping[str, str],
        token: str,
        profile: Mapping[str, Any],
        policy: Any,
    ) -> dict[str, Any]:
        """Return the port, when all workers are connected."""
        known = prior(Profile(**profile), flags(num_blocks=MAX_MODEL_LEN))
        config = RouterConfig(policy=PolicyConfig(name=policy), priors={CLASS: known})
        hashers = Hashers(KEY, BLOCK_SIZE)
        router = KvRouter(hashers, config)
        service = FleetConfig(service=ServiceConfig(token=token.encode()))
        fleet = WorkerFleet("benchmark", service, router, EventSubscriber(router.index))
        fleet.follow(addresses)
        tokenizer = open_tokenizer(MODEL)
        dispatch = DispatchConfig(model=MODEL)
        dispatcher = Dispatcher(dispatch, fleet, tokenizer, PromptHasher(hashers))
        frontend = FrontendConfig(port=0)
        app = Frontend(Served.of(frontend, MODEL, tokenizer, MAX_MODEL_LEN), dispatcher, frontend)
        listener, started = listen(frontend), asyncio.Event()
        self._serving = asyncio.create_task(Server(app).run(listener, started.set))
        await started.wait()
        while set(fleet.clients) != set(addresses):
            fleet.changed.clear()
            await fleet.changed.wait()
        return {"port": listener.getsockname()[1]}


async def main() -> None:
    await answer_lines({"start": Endpoint().start})


if __name__ == "__main__":
    uvloop.run(main())
