"""A frontend as it is deployed, before one worker: `step_front.py ADDRESS`. Says its port."""

import sys

import uvloop

from benchmarks.serving.step_worker import BLOCK_SIZE, KEY, MAX_MODEL_LEN, MODEL, TOKEN
from stafette.kvtransfer.event_stream.subscriber import EventSubscriber
from stafette.platform.frontend.app import Frontend
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.served import Served
from stafette.platform.frontend.server import Server, listen
from stafette.platform.serving.dispatcher import DispatchConfig, Dispatcher
from stafette.platform.serving.fleet import FleetConfig, WorkerFleet
from stafette.router.hashing import Hashers, PromptHasher
from stafette.router.router import KvRouter
from stafette.workers.garbage import settle
from stafette.workers.service.config import ServiceConfig
from stafette.workers.weights.opening import open_tokenizer


async def main(address: str) -> None:
    hashers = Hashers(KEY, BLOCK_SIZE)
    router = KvRouter(hashers)
    service = FleetConfig(service=ServiceConfig(token=TOKEN))
    fleet = WorkerFleet("front", service, router, EventSubscriber(router.index))
    tokenizer = open_tokenizer(MODEL, None)
    dispatch = DispatchConfig(model=MODEL)
    dispatcher = Dispatcher(dispatch, fleet, tokenizer, PromptHasher(hashers))
    fleet.follow({"step": address})
    while not fleet.clients:
        fleet.changed.clear()
        await fleet.changed.wait()
    config = FrontendConfig(port=0, served_model_name=("mock",))
    app = Frontend(Served.of(config, MODEL, tokenizer, MAX_MODEL_LEN), dispatcher, config)
    listener = listen(config)
    settle()
    await Server(app).run(listener, lambda: print(listener.getsockname()[1], flush=True))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
