"""A store with a device of its own, whose blocks have a content that follows from their hash."""

from functools import cache

import numpy as np
import pytest

from stafette.kvtransfer.blocks import HASH_BYTES, ROOT
from stafette.kvtransfer.event_log import CachedBlocks
from stafette.kvtransfer.tiers.config import DiskConfig, HostConfig, TiersConfig
from stafette.kvtransfer.tiers.device import ArrayBlocks
from stafette.kvtransfer.tiers.machinery import Machinery
from stafette.kvtransfer.tiers.store import TieredStore

BLOCK_BYTES = 4096
TIMEOUT_S = 10.0  # of what takes milliseconds: a test that needs it fails


@cache
def key_of(name):
    """Return a hash that shows its name."""
    return name.encode().ljust(HASH_BYTES, b"\0")


@cache
def content_of(key, block_bytes=BLOCK_BYTES):
    """Return the bytes of a block: no two alike, and no part like another."""
    seed = int.from_bytes(key, "little")
    return np.random.default_rng(seed).integers(0, 256, block_bytes, np.uint8)


def chain_of(names):
    """Return the hashes of a chain, and their parents."""
    keys = [key_of(name) for name in names]
    return keys, [ROOT, *keys[:-1]][: len(keys)]


class Rig:
    """A device of many slots and a store. Every slot is used once, so no copy hits a used one."""

    block_bytes = BLOCK_BYTES

    def __init__(self, config, source=None, syscalls=None, device=None, num_slots=4096):
        self.memory = np.zeros((num_slots, BLOCK_BYTES), np.uint8)
        self.device = device(self.memory) if device else ArrayBlocks(self.memory)
        self.events = CachedBlocks()
        machinery = Machinery(syscalls)
        self.store = TieredStore(config, self.device, self.events.apply, source, machinery)
        self._next_slot = 0

    def slots(self, count):
        first = self._next_slot
        self._next_slot += count
        return list(range(first, first + count))

    def offload(self, names, parents=None):
        """Begin to offload blocks that were just computed; a chain unless parents are given."""
        keys, chain = chain_of(names)
        slots = self.slots(len(keys))
        for slot, key in zip(slots, keys, strict=True):
            self.memory[slot] = content_of(key)
        self.store.touch(keys)
        return self.store.offload(keys, parents or chain, slots)

    def put(self, *names, parents=None):
        """Offload, and wait until it is done."""
        job = self.offload(names, parents)
        assert job.wait(TIMEOUT_S)
        return [outcome.name for outcome in job.outcomes]

    def onboard(self, names, **options):
        keys, _ = chain_of(names)
        slots = self.slots(len(keys))
        return self.store.onboard(keys, slots, **options), slots

    def get(self, *names, **options):
        """Onboard, wait, compare every byte of what is said to be there."""
        job, slots = self.onboard(names, **options)
        assert job.wait(TIMEOUT_S)
        for key, slot, outcome in zip(job.hashes, slots, job.outcomes, strict=True):
            right = (self.memory[slot] == content_of(key)).all()
            assert right if outcome.good else not self.memory[slot].any()
        return [outcome.name for outcome in job.outcomes]

    def where(self, *names):
        return list(self.store.lookup([key_of(name) for name in names]).tiers)

    def on(self, tier):
        """Return the names of the blocks on a tier, as the events tell it."""
        return {key.rstrip(b"\0").decode() for key in self.events.on(tier)}

    def settle(self):
        assert self.store.drain(TIMEOUT_S)
        return self.store.stats()

    def check_books(self):
        """Nothing is under way, hence nothing is held, and the events tell what is there."""
        stats = self.settle()
        shared = self.store._shared
        for tier, name in ((shared.host, "host"), (shared.disk, "disk")):
            if tier is None:
                continue
            assert tier.cache.num_pinned == shared.num_kept * (name == "host")
            assert tier.cache.num_free + len(tier.cache) == tier.cache.num_slots
            assert {entry.key for entry in tier.cache} == self.events.on(name)
        return stats


def config_of(host=8, disk=None, folder=None, **options):
    """Return a config of so many blocks; options of the disk begin with `disk_`."""
    below = None
    of_disk = {k.removeprefix("disk_"): options.pop(k) for k in list(options) if k[:5] == "disk_"}
    if "threads" in of_disk:
        options["disk_threads"] = of_disk.pop("threads")
    of_disk = {"policy": "lru", "admission": "always"} | of_disk
    if disk is not None:
        below = DiskConfig(folder=folder, num_blocks=disk, **of_disk)
    return TiersConfig(host=HostConfig(num_blocks=host, policy="lru"), disk=below, **options)


@pytest.fixture
def rigs(tmp_path):
    """Return a maker of rigs; all are closed, and their books checked, at the end."""
    made = []

    def make(host=8, disk=None, source=None, syscalls=None, device=None, **options):
        config = config_of(host, disk, tmp_path / "disk", **options)
        made.append(Rig(config, source, syscalls, device))
        return made[-1]

    yield make
    for rig in made:
        rig.check_books()
        rig.store.close()


@pytest.fixture
def tools():
    """Return this module's functions, for tests that make their own."""
    import types

    return types.SimpleNamespace(
        Rig=Rig,
        config_of=config_of,
        key_of=key_of,
        content_of=content_of,
        chain_of=chain_of,
        block_bytes=BLOCK_BYTES,
        timeout_s=TIMEOUT_S,
    )
