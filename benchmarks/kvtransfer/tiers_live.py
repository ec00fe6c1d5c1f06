"""Replays a trace through a real store: one prompt after the other, with very small blocks."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.kvtransfer.tiers_replay import Setting
from benchmarks.kvtransfer.trace_replay import Trace
from stafette.kvtransfer.blocks import ROOT
from stafette.kvtransfer.tiers.config import DiskConfig, HostConfig, TiersConfig
from stafette.kvtransfer.tiers.device import ArrayBlocks
from stafette.kvtransfer.tiers.store import TieredStore

BLOCK_BYTES = 64
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class LiveReplay:
    blocks: int
    onboarded: int
    host_hits: int
    prompts_per_s: float

    @property
    def percent(self) -> float:
        return 100 * self.onboarded / self.blocks

    @property
    def host_percent(self) -> float:
        return 100 * self.host_hits / self.blocks


def replay_store(trace: Trace, setting: Setting, folder: Path) -> LiveReplay:
    """Onboard what is found of each prompt, and offload the rest."""
    memory = np.zeros((max(map(len, trace)), BLOCK_BYTES), np.uint8)
    with TieredStore(_config(setting, folder), ArrayBlocks(memory)) as store:
        began = time.perf_counter()
        for keys in trace:
            _prompt(store, keys)
        seconds = time.perf_counter() - began
        stats = store.stats()
    blocks = sum(map(len, trace))
    hits = stats.host.counters.hits
    return LiveReplay(blocks, stats.calls.onboarded, hits, len(trace) / seconds)


def _config(setting: Setting, folder: Path) -> TiersConfig:
    host = HostConfig(num_blocks=setting.host_blocks, policy=setting.host_policy)
    disk = DiskConfig(
        folder=folder,
        num_blocks=setting.disk_blocks,
        policy=setting.disk_policy,
        admission=setting.admission,
    )
    return TiersConfig(host=host, disk=disk, save_on_close=False, patience_s=_TIMEOUT_S)


def _prompt(store: TieredStore, keys: list[bytes]) -> None:
    store.touch(keys)
    found = len(store.lookup(keys))
    if not store.onboard(keys[:found], range(found)).wait(_TIMEOUT_S):
        raise RuntimeError("blocks were not onboarded in time")
    parents = [ROOT, *keys[:-1]]
    if not store.offload(keys, parents, range(len(keys))).wait(_TIMEOUT_S):
        raise RuntimeError("blocks were not offloaded in time")
