"""The connector to the tiers below the pool: this worker's host memory, disk, and peers' hosts.

Blocks are copied to the host as soon as they are computed, so that nothing has to be saved when the
pool needs their place; they come back when a prompt begins with them, as far as that is sooner than
computing them.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.blocks import ROOT
from stafette.kvtransfer.buffers import Shape, region_of
from stafette.kvtransfer.connectors.connector import (
    Finish,
    KvConnector,
    KvRequest,
    KvShare,
    LoadOrder,
    Save,
)
from stafette.kvtransfer.connectors.loading import Load
from stafette.kvtransfer.connectors.paying import Paying
from stafette.kvtransfer.errors import InvalidValue, TransferError
from stafette.kvtransfer.events import KvEvent, Tier
from stafette.kvtransfer.tiers.agent_source import AgentSource
from stafette.kvtransfer.tiers.config import TiersConfig
from stafette.kvtransfer.tiers.device import ArrayBlocks, DeviceBlocks
from stafette.kvtransfer.tiers.host_share import HostShare
from stafette.kvtransfer.tiers.job import BlockJob
from stafette.kvtransfer.tiers.store import TieredStore

MakeDevice = Callable[[KvShare], DeviceBlocks]


@dataclass(frozen=True, slots=True, kw_only=True)
class TieredConfig:
    tiers: TiersConfig
    peers: bool = False  # show the host tier to peers, and take from theirs; needs an agent


def host_blocks(share: KvShare) -> DeviceBlocks:
    """Return the blocks of a pool that lies in host memory."""
    size = share.layout.block_bytes
    memory = region_of(share.buffer, Shape("pool", size, 0)).memory
    if memory is None:
        remedy = "is not host memory: give the connector a `make_device` for it"
        raise InvalidValue("share.buffer", type(share.buffer).__name__, remedy)
    return ArrayBlocks(memory.reshape(-1, size))


class TieredConnector(KvConnector):
    """One share a process. `store` and `source` are there once the pool is registered."""

    name = "tiered"
    saves_all = True

    def __init__(
        self,
        config: TieredConfig,
        agent: Agent | None = None,
        make_device: MakeDevice = host_blocks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if config.peers and agent is None:
            raise InvalidValue("agent", None, "tiered.peers needs a transfer agent: make one")
        self.config = config
        self.store: TieredStore | None = None
        self.source: AgentSource | None = None  # `hint` tells it what peers have
        self.paying = Paying(clock)
        self._clock = clock
        self._agent = agent
        self._make_device = make_device
        self._host_share: HostShare | None = None
        self._emit: Callable[[KvEvent], None] = lambda event: None
        self._saving: Counter[str] = Counter()  # by request, jobs under way
        self._lock = threading.Lock()

    @classmethod
    def of(cls, agent: Agent | None, config: TieredConfig | None) -> "TieredConnector":
        if config is None:
            raise InvalidValue("tiered", None, "has no defaults: say how large the host tier is")
        return cls(config, agent)

    def on_kv_events(self, emit: Callable[[KvEvent], None]) -> None:
        self._emit = emit

    # The scheduler's side

    def matched_tokens(self, request: KvRequest, num_held: int) -> int:
        if self.store is None:
            return 0
        missing = request.hashes[num_held // request.block_size :]
        found = self.store.lookup(missing).tiers
        chosen = self.paying.choose(found, request.block_size)
        if chosen < len(found):
            self.store.decline(len(found) - chosen)
        return chosen * request.block_size

    def begin(self, request: KvRequest, first: int, blocks: Sequence[int]) -> LoadOrder:
        if self.store is not None:
            self.store.touch(request.hashes)
        return LoadOrder.of(request, first, blocks, request.hashes[first - 1] if first else ROOT)

    def finish(self, request: KvRequest, reason: str = "") -> Finish:
        with self._lock:
            return Finish(keep=self._saving[request.request_id] > 0)

    def note_step(self, prompt_tokens: int, seconds: float, waiting: int) -> None:
        self.paying.note_step(prompt_tokens, seconds, waiting)

    def reset_cache(self) -> None:
        if self.store is not None:
            self.store.clear()

    # The worker's side

    def register(self, shares: Sequence[KvShare]) -> None:
        super().register(shares)
        if len(shares) != 1:
            raise InvalidValue("shares", len(shares), "must be 1: each rank has its own tiers")
        (share,) = shares
        tiers = self.config.tiers
        tiers = replace(tiers, compatibility=f"{tiers.compatibility}|{share.layout.pack()}")
        device = self._make_device(share)
        if self.config.peers and self._agent is not None:
            self.source = AgentSource(self._agent, device.block_bytes)
        self.store = TieredStore(tiers, device, self._emit, self.source)
        if self.config.peers and self._agent is not None:
            self._host_share = HostShare(self._agent, self.store)

    def start_load(self, order: LoadOrder) -> Load:
        load = Load(order)
        if self.store is None or not load.begin_write():
            return load
        parent: bytes = order.source  # type: ignore[assignment]
        tiers, began = self.store.lookup(order.hashes).tiers, self._clock()
        job = self.store.onboard(order.hashes, order.blocks, parent)
        load.on_ended(lambda _: job.cancel())
        job.on_done(lambda job: self._note_load(job, tiers, began))
        job.on_done(lambda job: _book(load, job))
        return load

    def save_layer(self, layer: int, save: Save) -> None:
        if not self.completes(layer):
            return
        assert self.store is not None, "the pool is registered first"
        with self._lock:
            self._saving[save.request_id] += 1
        parents = (save.parent, *save.hashes[:-1])
        job = self.store.offload(save.hashes, parents, save.blocks)
        job.on_done(lambda _: self._saved(save))

    def wait_saved(self, timeout_s: float) -> bool:
        return self.store is None or self.store.drain(timeout_s)

    def close(self) -> None:
        if self._host_share is not None:
            self._host_share.close()
            self._host_share = None
        if self.store is not None:
            self.store.close()
        if self.source is not None:
            self.source.close()

    def _note_load(self, job: BlockJob, tiers: Sequence[Tier], began: float) -> None:
        if job.num_ready == len(tiers):
            self.paying.note_load(tiers, self._clock() - began)

    def _saved(self, save: Save) -> None:
        with self._lock:
            self._saving[save.request_id] -= 1
            if not self._saving[save.request_id]:
                del self._saving[save.request_id]
        save.release()


def _book(load: Load, job: BlockJob) -> None:
    """Nothing is written any more: say what has arrived."""
    first = load.order.first
    load.arrive(first, first + job.num_ready)
    if not load.ended:
        told = ", ".join(f"{count} {what.value}" for what, count in job.counts().items())
        load.fail(TransferError(f"blocks of the tiers: {told}"))
    load.end_write()
