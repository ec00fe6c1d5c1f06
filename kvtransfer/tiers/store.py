"""The KV block manager: blocks leave the device for the host, the host for the disk, and come back.

Host memory and disk belong to the store, the device's slots to the engine. Blocks are known by
their hashes; a prompt's blocks are a chain, of which the first ones without a gap are of use. No
method waits for a copy, a disk or a peer: what takes time returns a handle. Nothing that goes wrong
there is raised: the engine computes what does not arrive.
"""

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

from stafette.kvtransfer.blocks import HASH_BYTES, ROOT
from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.events import KvEvent, Tier
from stafette.kvtransfer.memory import SharedMemory
from stafette.kvtransfer.tiers import disk_format
from stafette.kvtransfer.tiers.config import TiersConfig
from stafette.kvtransfer.tiers.demotion import Demoter
from stafette.kvtransfer.tiers.device import DeviceBlocks
from stafette.kvtransfer.tiers.disk_tier import DiskTier
from stafette.kvtransfer.tiers.found import Found, Pin
from stafette.kvtransfer.tiers.host_tier import Emit, HostTier
from stafette.kvtransfer.tiers.job import BlockJob, Outcome
from stafette.kvtransfer.tiers.loading import Request
from stafette.kvtransfer.tiers.machinery import Machinery
from stafette.kvtransfer.tiers.offloading import Offer, Offloader
from stafette.kvtransfer.tiers.onboarding import Onboarder
from stafette.kvtransfer.tiers.shared import Overwrite, Shared
from stafette.kvtransfer.tiers.source import BlockSource
from stafette.kvtransfer.tiers.stats import StoreStats, Waiting


def _ignore(event: KvEvent) -> None:
    pass


class TieredStore:
    """Any thread may call any method. `emit` hears of every change, in order, under the lock."""

    def __init__(
        self,
        config: TiersConfig,
        device: DeviceBlocks,
        emit: Emit = _ignore,
        source: BlockSource | None = None,
        machinery: Machinery | None = None,
    ) -> None:
        self.config = config
        self._machinery = machinery = machinery or Machinery()
        self._source = source
        self._closed = False
        self._onboarding = 0  # blocks
        lock = threading.Condition()
        host, disk = _open(config, device, lock, emit, machinery)
        limit = config.max_onboard_blocks
        batch = config.batch_blocks(device.block_bytes, host.num_blocks)
        lane, disk_limits = machinery.lane, (limit, config.max_demote_blocks)
        self._copies = lane("tiers-copy", 1, (limit, config.max_offload_blocks))
        self._reads = lane("tiers-disk", config.disk_threads, disk_limits)
        self._fetches = lane("tiers-peer", config.peer_threads, (limit, limit))
        demoter = Demoter(host, disk, self._reads, lock, batch, machinery)
        self._shared = Shared(lock, host, disk, demoter, device, self._copies, batch, machinery)
        self._offloader = Offloader(self._shared, config.patience_s)
        self._onboarder = Onboarder(self._shared, source, (self._reads, self._fetches))
        self._expiry = machinery.expiry(self._look)

    @property
    def host_memory(self) -> SharedMemory:
        """The host pool: one row of `block_bytes` after the other."""
        return self._shared.host.memory

    @property
    def block_bytes(self) -> int:
        return self._shared.device.block_bytes

    def tell_overwritten(self, call: Overwrite | None) -> None:
        """Call with host rows before they are overwritten: no peer may take it for the old."""
        self._shared.on_overwrite = call

    def lookup(self, hashes: Sequence[bytes]) -> Found:
        """Return where the first blocks of a chain can be had. It changes nothing."""
        located = self._locate(hashes)
        tiers: list[Tier] = []
        with self._shared.lock:
            for key in hashes:
                tier = self._tier_of(key, located)
                if tier is None:
                    break
                tiers.append(tier)
        return Found(tuple(tiers))

    def decline(self, num_blocks: int) -> None:
        """Note that blocks which were found are not wanted: something else is quicker."""
        with self._shared.lock:
            self._shared.calls.declined += num_blocks

    def touch(self, hashes: Sequence[bytes]) -> None:
        """Note that a prompt has these blocks: once a prompt, wherever they are."""
        host, disk = self._shared.host, self._shared.disk
        with self._shared.lock:
            self._shared.calls.touched += len(hashes)
            below = [key for key in hashes if key not in host.cache]
            host.cache.touch(hashes)
            if disk is not None:
                disk.touch(hashes, below)

    def offload(
        self, hashes: Sequence[bytes], parents: Sequence[bytes], slots: Sequence[int]
    ) -> BlockJob:
        """Copy device slots to the host. They must stay as they are until the job is done."""
        self._check(hashes, slots)
        if len(parents) != len(hashes):
            raise InvalidValue("parents", len(parents), f"must be as many as hashes: {len(hashes)}")
        job = self._new_job(hashes, self.config.offload_timeout_s)
        with self._shared.lock:
            self._shared.calls.offered += len(hashes)
            generation = self._shared.generation
        self._offloader.start(Offer(job, tuple(parents), tuple(slots), generation))
        return job

    def onboard(
        self,
        hashes: Sequence[bytes],
        slots: Sequence[int],
        parent: bytes = ROOT,
        timeout_s: float | None = None,
    ) -> BlockJob:
        """Fill device slots with a chain's blocks, whose first one follows `parent`."""
        self._check(hashes, slots)
        limit_s = self.config.onboard_timeout_s if timeout_s is None else timeout_s
        job = self._new_job(hashes, limit_s)
        if not self._admit(job):
            job.settle(range(len(hashes)), Outcome.DROPPED)
            return job
        request = Request(job, (parent, *hashes[:-1])[: len(hashes)], tuple(slots))
        self._onboarder.start(request, self._locate(hashes))
        return job

    def preheat(self, hashes: Sequence[bytes], parent: bytes = ROOT) -> BlockJob:
        """Bring a chain's blocks to the host before somebody wants them."""
        job = self._new_job(hashes, self.config.preheat_timeout_s)
        room = self._shared.demoter.room  # more would push out its own beginning
        job.settle(range(room, len(hashes)), Outcome.DROPPED)
        parents = (parent, *hashes[:-1])[: min(room, len(hashes))]
        self._onboarder.preheat(Request(job, parents), self._locate(hashes))
        return job

    def pin(self, hashes: Sequence[bytes]) -> Pin:
        """Keep the first blocks of a chain that are on the host, as far as `pin_share` allows."""
        with self._shared.lock:
            return self._pin(hashes[: self._shared.host.cache.num_cached(hashes)])

    def pin_each(self, hashes: Sequence[bytes]) -> Pin:
        """Keep those blocks that are on the host, gaps or not, as far as `pin_share` allows."""
        with self._shared.lock:
            return self._pin([key for key in hashes if key in self._shared.host.cache])

    def clear(self) -> None:
        """Forget all blocks, also on disk: the weights are new. Ends what is under way."""
        shared = self._shared
        with shared.lock:
            shared.generation += 1
            shared.host.clear()
            self._offloader.forget()
            self._onboarder.loader.forget()
            if shared.disk is not None:
                shared.disk.forget()
        self._expiry.cancel_all()
        if shared.disk is not None:
            shared.disk.clear()

    def stats(self) -> StoreStats:
        shared = self._shared
        with shared.lock:
            host = shared.host.snapshot()
            disk = shared.disk.snapshot() if shared.disk is not None else None
            peer, calls = replace(self._onboarder.loader.peer_counters), replace(shared.calls)
        waiting = Waiting(*self._copies.num_waiting, *self._reads.num_waiting)
        below = None if disk is None else disk.stats()
        return StoreStats(host.stats(), below, peer, calls, waiting)

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is under way, as far as this caller has started it."""
        deadline = time.monotonic() + timeout_s
        lanes = (self._fetches, self._reads, self._copies, self._reads)
        return all(lane.drain(max(0.0, deadline - time.monotonic())) for lane in lanes)

    def close(self) -> None:
        """End what is under way, save what only the host has, give everything back. Idempotent."""
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + self.config.close_timeout_s
        self._expiry.cancel_all()
        ended = self._copies.close(self.config.close_timeout_s / 2)
        if self.config.save_on_close:
            self._save(deadline)
        for lane in (self._reads, self._fetches):
            ended &= lane.close(max(0.0, deadline - time.monotonic()))
        self._expiry.close()
        if self._shared.disk is not None and ended:  # a thread that hangs still has its files
            self._shared.disk.close()
        self._shared.host.memory.close()

    def __enter__(self) -> "TieredStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pin(self, hashes: Sequence[bytes]) -> Pin:
        shared = self._shared
        most = int(shared.host.num_blocks * self.config.host.pin_share) - shared.num_kept
        entries = [shared.host.cache.pin(key) for key in hashes[: max(0, most)]]
        shared.num_kept += len(entries)
        return Pin(shared, entries)

    def _look(self) -> None:
        with self._shared.lock:
            if self._shared.disk is not None:
                self._shared.disk.check_stall()

    def _check(self, hashes: Sequence[bytes], slots: Sequence[int]) -> None:
        if len(slots) != len(hashes):
            raise InvalidValue("slots", len(slots), f"must be as many as hashes: {len(hashes)}")
        end = self._shared.device.num_blocks
        wrong = next((slot for slot in slots if not 0 <= slot < end), None)
        if wrong is not None:
            raise InvalidValue("slots", wrong, f"must be in 0..{end - 1}")

    def _new_job(self, hashes: Sequence[bytes], timeout_s: float) -> BlockJob:
        wrong = next((key for key in hashes if len(key) != HASH_BYTES), None)
        if wrong is not None:
            raise InvalidValue("hashes", wrong, f"must have {HASH_BYTES} bytes each")
        job = BlockJob(hashes, timeout_s, self._machinery.now)
        if self._closed:
            job.settle(range(len(hashes)), Outcome.DROPPED)
        self._expiry.watch(job)
        return job

    def _admit(self, job: BlockJob) -> bool:
        """Count the blocks that are under way to the device; False when they are too many."""
        size = len(job.hashes)
        with self._shared.lock:
            self._shared.calls.wanted += size
            if self._closed or self._onboarding + size > self.config.max_onboard_blocks:
                return False
            self._onboarding += size
        job.on_done(self._over)
        return True

    def _over(self, job: BlockJob) -> None:
        with self._shared.lock:
            self._onboarding -= len(job.hashes)

    def _locate(self, hashes: Sequence[bytes]) -> Collection[bytes]:
        return () if self._source is None else frozenset(self._source.locate(hashes))

    def _tier_of(self, key: bytes, located: Collection[bytes]) -> Tier | None:
        if key in self._shared.host.cache:
            return "host"
        if self._shared.disk is not None and key in self._shared.disk.cache:
            return "disk"
        return "peer" if key in located else None

    def _save(self, deadline: float) -> None:
        """Write what only the host has, in the lane that is closed next, and awaited so long."""
        demoter = self._shared.demoter
        with self._shared.lock:
            batches = demoter.unsaved()
        for batch in batches:
            self._reads.submit(partial(demoter.save, batch, deadline), 0, urgent=False)


def _open(
    config: TiersConfig,
    device: DeviceBlocks,
    lock: threading.Condition,
    emit: Emit,
    machinery: Machinery,
) -> tuple[HostTier, DiskTier | None]:
    host = HostTier(config.host, device.block_bytes, emit, last=config.disk is None)
    try:
        device.prepare(host.rows)
        if config.disk is None:
            return host, None
        head = disk_format.new_head(device.block_bytes, config.compatibility)
        return host, DiskTier(config.disk, head, lock, emit, machinery)
    except BaseException:
        host.memory.close()
        raise
