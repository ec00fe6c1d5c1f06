"""A frontend as it is deployed, before one worker: `step_front.py ADDRESS STREAM [PORT GOSSIP...]`.

Says its port, which it shares with others that are told of it, and where it gossips.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import uvloop

from benchmarks.serving.step_worker import BLOCK_SIZE, KEY, MAX_MODEL_LEN, MODEL, TOKEN
from stafette.kvtransfer.event_stream.subscriber import EventSubscriber
from stafette.platform.frontend.app import Frontend
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.served import Served
from stafette.platform.frontend.server import Server, listen
from stafette.platform.serving.dispatcher import DispatchConfig, Dispatcher
from stafette.platform.serving.fleet import FleetConfig, WorkerFleet
from stafette.platform.serving.frontend_peers import FrontendPeers
from stafette.router.hashing import Hashers, PromptHasher
from stafette.router.router import KvRouter
from stafette.router.sharing import Sharing
from stafette.workers.garbage import settle
from stafette.workers.service.config import ServiceConfig
from stafette.workers.weights.opening import open_tokenizer


async def main(address: str, stream: Any, port: int, others: Sequence[str]) -> None:
    hashers = Hashers(KEY, BLOCK_SIZE)
    name = f"front-{os.getpid()}"
    peers = FrontendPeers(name, "127.0.0.1", TOKEN)
    router = KvRouter(hashers, sharing=Sharing(peers.gossip.publish))
    peers.start(router)
    peers.meet(others)
    service = FleetConfig(service=ServiceConfig(token=TOKEN, stream=stream))
    fleet = WorkerFleet(name, service, router, EventSubscriber(router.index))
    tokenizer = open_tokenizer(MODEL, None)
    dispatch = DispatchConfig(model=MODEL)
    dispatcher = Dispatcher(dispatch, fleet, tokenizer, PromptHasher(hashers))
    fleet.follow({"step": address})
    while not fleet.clients:
        fleet.changed.clear()
        await fleet.changed.wait()
    config = FrontendConfig(port=port, served_model_name=("mock",))
    app = Frontend(Served.of(config, MODEL, tokenizer, MAX_MODEL_LEN), dispatcher, config)
    listener = listen(config, shared=True)
    said = f"{listener.getsockname()[1]} {peers.address}"
    settle()
    await Server(app).run(listener, lambda: print(said, flush=True))


if __name__ == "__main__":
    _, where, kind, *shared = sys.argv
    uvloop.run(main(where, kind, int((shared or ["0"])[0]), shared[1:]))
