"""Makes a frontend's parts, and what it shares with workers, from the one tree of settings."""

from dataclasses import dataclass
from hashlib import blake2b

from stafette.kvtransfer.event_stream.link import SubscriberConfig
from stafette.kvtransfer.event_stream.subscriber import EventSubscriber
from stafette.platform.config import Config
from stafette.platform.observability.fleet import FleetMetrics
from stafette.platform.observability.members import node_folder
from stafette.platform.observability.node import NodePage
from stafette.platform.observability.process import ProcessMetrics
from stafette.platform.serving.dispatcher import Dispatcher
from stafette.platform.serving.fleet import FleetConfig, WorkerFleet
from stafette.platform.serving.frontend_peers import FrontendPeers
from stafette.router.hashing import Hashers, PromptHasher
from stafette.router.router import KvRouter
from stafette.router.sharing import Sharing
from stafette.workers.service.config import ServiceConfig
from stafette.workers.weights.opening import open_tokenizer
from stafette.workers.weights.tokenizer import Tokenizer

_KEY_BYTES = 32


@dataclass(slots=True)
class Front:
    """What a frontend needs to serve from a fleet. Used by one event loop."""

    fleet: WorkerFleet
    events: EventSubscriber
    dispatcher: Dispatcher
    tokenizer: Tokenizer
    peers: FrontendPeers

    async def close(self) -> None:
        await self.peers.close()
        await self.fleet.close()
        self.events.close()


def service_config(config: Config, host: str = "127.0.0.1") -> ServiceConfig:
    return config.service.make(token=config.token, host=host)


def make_front(config: Config, name: str, host: str) -> Front:
    """Return a frontend's fleet, still empty, and what places requests on it."""
    peers = FrontendPeers(name, host, config.token)
    block_size = config.engine_flags(next(iter(config.pools))).block_size
    hashers = Hashers(cache_key(config), block_size)
    router = KvRouter(hashers, config.router, sharing=Sharing(peers.gossip.publish))
    peers.start(router)
    events = EventSubscriber(router.index, SubscriberConfig(key=config.token))
    fleet = WorkerFleet(name, FleetConfig(service=service_config(config)), router, events)
    tokenizer = open_tokenizer(config.model, config.engine.given.get("tokenizer"))  # type: ignore[arg-type]
    dispatch = config.dispatch.make(model=config.model, loras=tuple(config.lora_modules))
    dispatcher = Dispatcher(dispatch, fleet, tokenizer, PromptHasher(hashers))
    return Front(fleet, events, dispatcher, tokenizer, peers)


def fleet_metrics(front: Front) -> FleetMetrics:
    return FleetMetrics(front.fleet, front.dispatcher, front.events, front.peers.gossip)


def node_page(config: Config, process: str, pool: str) -> NodePage:
    """Return what a process shows of itself and of those beside it."""
    folder = node_folder(config.token, config.name)
    return NodePage(ProcessMetrics(process, pool), config.metrics, folder)


def cache_key(config: Config) -> str:
    """Return the key of the block hashes: of the token, but not telling it."""
    return blake2b(config.token, digest_size=_KEY_BYTES, person=b"stafette-blocks").hexdigest()
