"""Tiers below a mock worker's pool: the store's decisions, and times that can be calculated."""

import random

import numpy as np
import pytest

from stafette.kvtransfer.event_log import CachedBlocks
from stafette.kvtransfer.tiers.config import DiskConfig, HostConfig, TiersConfig
from stafette.kvtransfer.tiers.device import ArrayBlocks
from stafette.kvtransfer.tiers.store import TieredStore
from stafette.workers.errors import ConfigError
from stafette.workers.mocker.agenda import Agenda
from stafette.workers.mocker.config import DEFAULT_FLAGS, MockerConfig
from stafette.workers.mocker.tier_speed import TierSpeed
from stafette.workers.mocker.tiers import tiers_of

BLOCK = 16  # tokens, of 1 MB each in the stage's profile
# A block takes 16 ms to or from the host, 32 ms from the disk, 160 ms to it.
SPEED = TierSpeed(host_gb_s=1.0, disk_read_gb_s=0.5, disk_write_gb_s=0.1, disk_latency_ms=0.0)


def tiers(host, disk=None, folder="nowhere", **options):
    below = disk and DiskConfig(folder=folder, num_blocks=disk, admission="always", policy="lru")
    return TiersConfig(host=HostConfig(num_blocks=host, policy="lru"), disk=below, **options)


def prompt(number, blocks=4):
    """Return a prompt of whole blocks and one token more, which begins like no other."""
    return [5 + number] * (blocks * BLOCK + 1)


def answer(stage, worker, name, **request):
    """Serve a request alone, to its end; return how many tokens it found."""
    worker.generate(stage.request(name, max_tokens=1, **request))
    stage.time.run()
    (delta,) = [delta for _, delta in stage.deltas if delta.request_id == name]
    return delta.num_cached_tokens


def counted(worker):
    stats = worker.tiers.store.stats()
    return stats.host.counters.hits, stats.disk.counters.hits if stats.disk else 0


def test_what_has_left_the_device_comes_back_from_the_host(stage):
    worker = stage.worker(
        tiers=tiers(host=32), tier_speed=SPEED, num_kv_blocks=8, max_model_len=128
    )
    answer(stage, worker, "first", prompt=prompt(1))
    for number in (2, 3):
        answer(stage, worker, f"r{number}", prompt=prompt(number))
    began = stage.time.now

    found = answer(stage, worker, "again", prompt=prompt(1))

    assert (found, counted(worker)) == (64, (4, 0))
    # Four blocks of 16 ms each, and a step of 1 s for the one token that is left.
    assert stage.times("again") == [pytest.approx(began + 0.064 + 1.0)]
    worker.close()


def test_what_has_left_the_host_comes_from_the_disk(stage):
    worker = stage.worker(
        tiers=tiers(host=8, disk=64), tier_speed=SPEED, num_kv_blocks=8, max_model_len=128
    )
    for number in (1, 2, 3, 4):
        answer(stage, worker, f"r{number}", prompt=prompt(number))
    began = stage.time.now

    found = answer(stage, worker, "again", prompt=prompt(1))

    assert (found, counted(worker)) == (64, (0, 4))
    assert stage.times("again")[0] > began + 4 * 0.032 + 1.0
    worker.close()


def test_routers_hear_which_tier_a_block_is_on(stage):
    worker = stage.worker(
        tiers=tiers(host=8, disk=64), tier_speed=SPEED, num_kv_blocks=8, max_model_len=128
    )
    for number in (1, 2, 3, 4):
        answer(stage, worker, f"r{number}", prompt=prompt(number))

    known = CachedBlocks()
    for batch in stage.batches["w"]:
        for event in batch.events:
            known.apply(event)

    store = worker.tiers.store
    assert known.on("host") == {entry.key for entry in store._shared.host.cache}
    assert known.on("disk") == {entry.key for entry in store._shared.disk.cache}
    assert len(known.on("disk")) >= 8
    worker.close()


def test_a_copy_waits_for_the_disk_and_nothing_is_lost(stage):
    slow = TierSpeed(host_gb_s=100.0, disk_write_gb_s=1.0)
    options = {"tiers": tiers(host=8, disk=256, patience_s=60.0), "tier_speed": slow}
    worker = stage.worker(num_kv_blocks=64, max_model_len=1_024, **options)

    answer(stage, worker, "long", prompt=prompt(1, blocks=40))

    stats = worker.tiers.store.stats()
    assert stats.calls.offloaded == 40
    assert stats.host.counters.lost == stats.calls.offloads_dropped == 0
    assert stats.disk.used_blocks >= 32
    worker.close()


def test_a_worker_without_patience_loses_what_the_disk_is_too_slow_for(stage):
    slow = TierSpeed(host_gb_s=100.0, disk_write_gb_s=0.001)
    options = {"tiers": tiers(host=8, disk=256, patience_s=0.001), "tier_speed": slow}
    worker = stage.worker(num_kv_blocks=64, max_model_len=1_024, **options)

    answer(stage, worker, "long", prompt=prompt(1, blocks=40))

    assert worker.tiers.store.stats().host.counters.lost > 0
    worker.close()


def test_a_load_that_takes_too_long_is_computed_instead(stage):
    crawling = TierSpeed(host_gb_s=1.0, disk_read_gb_s=0.001, disk_write_gb_s=1.0)
    options = {"tiers": tiers(host=8, disk=64, onboard_timeout_s=1.0), "tier_speed": crawling}
    worker = stage.worker(num_kv_blocks=8, max_model_len=128, **options)
    for number in (1, 2, 3, 4):
        answer(stage, worker, f"r{number}", prompt=prompt(number))
    began = stage.time.now

    found = answer(stage, worker, "again", prompt=prompt(1))

    assert found < 64
    assert stage.times("again")[0] < began + 1.0 + 1.0 + 0.65 + 0.1
    worker.close()


@pytest.mark.parametrize("seed", range(4))
def test_the_same_prompts_find_the_same_blocks_as_in_a_store_with_threads_and_files(tmp_path, seed):
    real_config = tiers(host=16, disk=80, folder=tmp_path / "kv", patience_s=30.0)
    agenda, now = Agenda(), [0.0]
    flags = MockerConfig(name="w", engine=DEFAULT_FLAGS, tiers=real_config)
    modelled = tiers_of(flags, (agenda, lambda: now[0], lambda: None), lambda event: None).store
    real = TieredStore(real_config, ArrayBlocks(np.zeros((512, 4096), np.uint8)))

    def settle():
        while agenda.next_at is not None:
            now[0] = agenda.next_at
            agenda.run(now[0])
        assert real.drain(60.0)

    try:
        for chain in _prompts(random.Random(seed)):
            found = []
            for store in (modelled, real):
                found.append(store.lookup(chain).tiers)
                store.touch(chain)
                store.onboard(chain[: len(found[-1])], range(len(found[-1])))
            settle()
            for store in (modelled, real):
                store.offload(chain, [bytes(16), *chain[:-1]], range(len(chain)))
            settle()
            assert len(found[0]) == len(found[1])
    finally:
        modelled.close()
        real.close()
    told = [store.stats() for store in (modelled, real)]
    hits = [(stats.host.counters.hits, stats.disk.counters.hits) for stats in told]
    assert sum(hits[0]) == sum(hits[1])
    # Which of the two had it, also depends on whose thread of the real one was quicker.
    assert abs(hits[0][0] - hits[1][0]) <= 0.1 * sum(hits[1])
    assert min(hits[0]) > 20


def _prompts(draw):
    """Yield chains of blocks that begin like others, from a set four times the host's."""
    for _ in range(120):
        family, length = draw.randrange(16), draw.randint(1, 4)
        yield [bytes([family, place]).ljust(16, b"\1") for place in range(length)]


def test_speeds_that_cannot_be_are_refused_by_name():
    with pytest.raises(ConfigError, match="tier_speed.host_gb_s"):
        TierSpeed(host_gb_s=0.0)
    with pytest.raises(ConfigError, match="tier_speed.disk_latency_ms"):
        TierSpeed(disk_latency_ms=-1.0)
