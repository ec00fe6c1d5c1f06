"""A whole worker: its engine, the hand-over of KV, its events, and what it tells frontends."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.blocks import BlockHasher
from stafette.kvtransfer.connectors.connector import KvConnector
from stafette.kvtransfer.connectors.multi import MultiConnector
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.connectors.p2p.connector import P2pConnector
from stafette.kvtransfer.connectors.p2p.messages import Take
from stafette.kvtransfer.connectors.tiered import TieredConfig, TieredConnector
from stafette.kvtransfer.control.host import host_id
from stafette.kvtransfer.errors import KvTransferError
from stafette.kvtransfer.event_stream.publisher import EventPublisher, PublisherConfig
from stafette.kvtransfer.tiers.config import TiersConfig
from stafette.kvtransfer.tiers.stats import StoreStats
from stafette.workers.async_engine import AsyncEngine
from stafette.workers.building import build_engine
from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError, RequestError
from stafette.workers.handover.handover import Handover
from stafette.workers.handover.imports import Imports
from stafette.workers.handover.tensor_blocks import device_blocks
from stafette.workers.request import OutputDelta
from stafette.workers.runner.kv_member import open_p2p
from stafette.workers.runner.rank_process import RankSource
from stafette.workers.service.frames import Order
from stafette.workers.service.load import load_of
from stafette.workers.service.measured import Measured
from stafette.workers.service.outcome import told_of
from stafette.workers.service.preheating import preheat_request
from stafette.workers.service.serving import Operation
from stafette.workers.service.standing import ROLES, Role, Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    name: str  # unique in the cluster
    role: Role = "both"
    engine: EngineConfig = EngineConfig()
    agent: AgentConfig  # its name is the worker's
    p2p: P2pConfig = P2pConfig()
    events: PublisherConfig = field(default_factory=PublisherConfig)
    worker_class: str = ""  # those of one class are equally fast
    loras: Mapping[str, str] = field(default_factory=dict)  # PEFT adapters: their folders by name
    tiers: TiersConfig | None = None  # below the pool: host memory, and disk
    ranks: RankSource | None = None  # of tensor parallelism; None: on this host

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ConfigError("worker.role", self.role, f"must be one of {', '.join(ROLES)}")
        if self.agent.name != self.name:
            raise ConfigError("worker.agent.name", self.agent.name, f"must be {self.name!r}")


class EngineWorker(Standing):
    """Make it with `await EngineWorker.start(config)`, in the loop that serves it."""

    def __init__(
        self,
        config: WorkerConfig,
        handover: Handover,
        connector: P2pConnector,
        events: EventPublisher,
    ) -> None:
        self.config = config
        super().__init__(config.role)
        self._handover = handover
        self._connector = connector
        self._engine = handover.engine
        self._agent = connector.agent
        self._events = events

    @classmethod
    async def start(cls, config: WorkerConfig) -> "EngineWorker":
        """Load the model; return when the first request would not be slower than the next."""
        flags = replace(config.engine, share_kv_memory=True)
        core = await asyncio.to_thread(build_engine, flags, config.name, config.ranks)
        for name, path in config.loras.items():
            await asyncio.to_thread(core.adapters.load, name, path)
        agent = Agent(config.agent)
        connector = await asyncio.to_thread(open_p2p, core, agent, config.p2p)
        engine = AsyncEngine(core, asyncio.get_running_loop())
        handover = await Handover.start(engine, _with_tiers(connector, config.tiers))
        events = EventPublisher(core.kv_events, config.events)
        core.on_kv_events = events.send
        return cls(config, handover, connector, events)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def epoch(self) -> int:
        return self._agent.epoch

    @property
    def engine(self) -> AsyncEngine:
        return self._engine

    @property
    def imports(self) -> Imports:
        return self._handover.imports

    @property
    def num_running(self) -> int:
        return self._engine.stats().scheduler.num_running

    @property
    def is_alive(self) -> bool:
        return self._engine.is_alive

    @property
    def num_pinned(self) -> int:
        """Blocks that others may be reading."""
        return self._handover.exports.counters.num_pinned

    def relieve(self) -> None:
        """Take back a lease whose reader has had time enough."""
        self._connector.relieve()

    def describe(self) -> Mapping[str, object]:
        config, core = self.config.engine, self._engine.engine
        hasher = BlockHasher(config.prefix_cache_key, config.block_size, config.model)
        layout = core.executor.runner.kv_layout
        return {
            "role": self.role,
            "class": self.config.worker_class,
            "model": config.model,
            "max_model_len": core.max_model_len,
            "block_size": config.block_size,
            "fingerprint": hasher.fingerprint,
            "num_blocks": core.pool.num_blocks,
            "block_bytes": layout.block_bytes * config.tensor_parallel_size,
            "max_num_seqs": config.max_num_seqs,
            "loras": list(core.adapters.names),
            "host": host_id(),
            "agent": self._agent.metadata(),
            "members": self._connector.member_agents,
            "events": [self._events.address, self._events.replay_address],
        }

    def load(self) -> Mapping[str, object]:
        told = load_of(self._engine.stats().scheduler, self.role, self.draining)
        return {
            **told,
            "pulled_tokens": self._handover.imports.counters.pulled_tokens,
            "passed_tokens": self._handover.exports.counters.passed_tokens,
            "steps": self._engine.engine.samples.latest(),
        }

    def measured(self) -> Measured:
        moved, core = self._agent.stats(), self._engine.engine
        return Measured(
            role=self.role,
            draining=self.draining,
            alive=self._engine.is_alive,
            engine=self._engine.stats(),
            step_seconds=core.step_seconds,
            times=core.times,
            imports=self._handover.imports.counters,
            exports=self._handover.exports.counters,
            transfers=moved.transfers,
            unsettled=moved.unsettled,
            leases=moved.leases,
            refused_peers=moved.control.refused,
            tiers=_tiers_of(self._handover.connector),
        )

    async def generate(self, order: Order) -> AsyncGenerator[OutputDelta, None]:
        if not order.last_resort:
            self._raise_if_draining()
        async with aclosing(self._handover.generate(order.request, order.kv_params)) as deltas:
            async for delta in deltas:
                yield delta

    async def prefill(self, order: Order) -> Mapping[str, object]:
        takes = Take.find(order.kv_params) is not None
        if takes or not order.cached_only:
            self._raise_if_draining()
        if takes and order.cached_only:
            pulled = await self._handover.fetch(order.request, order.kv_params)
            return {"num_tokens": pulled.num_held + pulled.num_pulled, "told": pulled.shortfall}
        serve = self._handover.offer if order.cached_only else self._handover.prefill
        exported = await serve(order.request, order.kv_params)
        return told_of(exported)

    def operations(self) -> Mapping[str, Operation]:
        return {
            "add_peer": self._add_peer,
            "set_role": self._set_role,
            "drain": self._drain,
            "retire": self._retire,
            "give_up": self._give_up,
            "stats": self._stats,
            "reset_prefix_cache": self._reset_prefix_cache,
            "preheat": self._preheat,
        }

    async def close(self) -> None:
        """End what is under way, and give everything back."""
        await self._handover.close()
        self._agent.close()
        await self._engine.close()
        self._events.close()

    async def _add_peer(self, payload: object) -> object:
        """Get to know another worker's agent; its first contact is made in the background."""
        if not isinstance(payload, bytes):
            raise RequestError("metadata", payload, "must be bytes of an agent's metadata")
        try:
            return await asyncio.to_thread(self._connector.add_peer, payload)
        except KvTransferError as error:
            raise RequestError("metadata", f"{len(payload)} bytes", str(error)) from error

    async def _give_up(self, payload: object) -> object:
        """Nothing more will come of a hand-off: who waits for it goes on without."""
        if not isinstance(payload, str):
            raise RequestError("hand-off", payload, "must be an id")
        await asyncio.to_thread(self._connector.give_up, payload)
        return None

    async def _stats(self, payload: object) -> object:
        stats, moved = self._engine.stats(), self._agent.stats()
        imports, exports = self._handover.imports.counters, self._handover.exports.counters
        return {
            "at": time.time(),
            **self.load(),
            "steps": stats.num_steps,
            "tokens": stats.num_tokens,
            "busy_seconds": stats.busy_seconds,
            "pulled_tokens": imports.pulled_tokens,
            "shortfalls": dict(imports.shortfalls),
            "pinned_blocks": exports.num_pinned,
            "leases": moved.leases.living,
            "moved_bytes": {name: each.nbytes for name, each in moved.transfers.items() if name},
        }

    async def _preheat(self, payload: object) -> object:
        """Compute a prompt for those that will begin like it; return how much of it is cached."""
        request = preheat_request(payload)
        async with aclosing(self._engine.generate(request)) as deltas:
            async for _ in deltas:
                pass
        size = self.config.engine.block_size
        return len(request.prompt_token_ids) // size * size

    async def _reset_prefix_cache(self, payload: object) -> object:
        await self._engine.call(lambda engine: engine.reset_prefix_cache())
        return None


def _tiers_of(connector: KvConnector) -> StoreStats | None:
    for each in connector.members if isinstance(connector, MultiConnector) else ():
        if isinstance(each, TieredConnector) and each.store is not None:
            return each.store.stats()
    return None


def _with_tiers(p2p: P2pConnector, tiers: TiersConfig | None) -> KvConnector:
    """Return what brings blocks: the tiers of this worker first, for they are near."""
    if tiers is None:
        return p2p
    tiered = TieredConnector(TieredConfig(tiers=tiers), make_device=device_blocks)
    return MultiConnector((tiered, p2p))
