"""How fast blocks go down and come back, beside a plain copy and plain reads of the same file."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.common.report import Goal, Report
from benchmarks.common.rounds import middle, ratio
from stafette.kvtransfer.blocks import ROOT
from stafette.kvtransfer.memory import SharedMemory
from stafette.kvtransfer.tiers.config import DiskConfig, HostConfig, TiersConfig
from stafette.kvtransfer.tiers.device import ArrayBlocks, Rows
from stafette.kvtransfer.tiers.disk_format import Record, new_head, pack_head, pack_record
from stafette.kvtransfer.tiers.disk_tier import DiskTier
from stafette.kvtransfer.tiers.job import BlockJob
from stafette.kvtransfer.tiers.store import TieredStore

SIZES = {"360 KiB": 360 << 10, "2 MiB": 2 << 20}  # of 16 tokens: SmolLM2-135M, Llama 3 8B
POOL_BYTES, QUICK_POOL_BYTES = 512 << 20, 128 << 20
ROUNDS, QUICK_ROUNDS = 5, 3
INDEX_BLOCKS, QUICK_INDEX_BLOCKS = 400_000, 50_000
LEAST_OF_COPY, LEAST_OF_READ = 0.6, 0.7
COPY, OUT, IN = "plain copy", "device to host", "host to device"
WRITE, READ, PLAIN_READ = "device to disk", "disk to device", "plain reads"
_DISK_THREADS = 2
_TIMEOUT_S = 120.0
_TINY_BYTES = 64


def measure(report: Report, folder: Path, quick: bool) -> None:
    pool_bytes = QUICK_POOL_BYTES if quick else POOL_BYTES
    rows, direct = [], True
    for name, block_bytes in SIZES.items():
        bench = Bench(folder, block_bytes, pool_bytes // block_bytes)
        for _ in range(QUICK_ROUNDS if quick else ROUNDS):
            bench.round()
        found = {what: middle(speeds) for what, speeds in bench.speeds.items()}
        rows.append([name, *found.values()])
        copy, read = ratio(found[IN], found[COPY]), ratio(found[READ], found[PLAIN_READ])
        report.goal(Goal(f"{IN} / {COPY}, {name}", copy, at_least=LEAST_OF_COPY))
        report.goal(Goal(f"{READ} / {PLAIN_READ}, {name}", read, at_least=LEAST_OF_READ))
        direct &= bench.direct
    report.table(f"GB/s, {pool_bytes >> 20} MiB, median", ["block", *bench.speeds], rows)
    num_blocks = QUICK_INDEX_BLOCKS if quick else INDEX_BLOCKS
    report.figure(f"index of {num_blocks:,} blocks read, s", rebuild_s(folder, num_blocks))
    how = "past the page cache" if direct else "through the page cache: memory, not a disk"
    report.note(f"the disk is read and written {how}, by {_DISK_THREADS} threads")


def rebuild_s(folder: Path, num_blocks: int) -> float:
    """Return how long a restart takes to know a full disk's blocks: 1,000 chains, say."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    head, length = new_head(_TINY_BYTES, ""), num_blocks // 1_000
    with (folder / "index").open("wb") as index:
        index.write(pack_head(head))
        for number in range(num_blocks):
            parent = b"%016d" % (number - 1) if number % length else ROOT
            index.write(pack_record(Record(b"%016d" % number, parent, 0, number), head))
    config = DiskConfig(folder=folder, num_blocks=num_blocks, preallocate=False)
    began = time.perf_counter()
    tier = DiskTier(config, head, threading.Condition(), lambda event: None)
    seconds = time.perf_counter() - began
    tier.close()
    if len(tier.cache) != num_blocks:
        raise RuntimeError(f"{len(tier.cache)} of {num_blocks} blocks were found")
    return seconds


class Bench:
    """One size of blocks. The device is memory; a round begins with an empty folder."""

    def __init__(self, folder: Path, block_bytes: int, num_blocks: int) -> None:
        self.speeds: dict[str, list[float]] = {
            what: [] for what in (COPY, OUT, IN, WRITE, READ, PLAIN_READ)
        }
        self.direct = True
        self._folder = folder
        self._nbytes = block_bytes * num_blocks
        rng = np.random.default_rng(0)
        self._content: Rows = rng.integers(0, 256, (num_blocks, block_bytes), np.uint8)
        self._device = self._content.copy()
        self._keys = [b"%016d" % number for number in range(num_blocks)]
        self._spare = SharedMemory("plain", self._nbytes, huge_pages=True)
        self._pool = self._spare.array.reshape(num_blocks, block_bytes)

    def round(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._clock(COPY, lambda: ArrayBlocks(self._content).copy_out(*self._all_rows()))
        with self._store(None) as store:
            self._clock(OUT, lambda: _done(self._offload(store)))
            self._device[:] = 0
            self._clock(IN, lambda: _done(self._onboard(store)))
            self._check()
        with self._store(self._disk()) as store:
            self._clock(WRITE, lambda: self._write(store))
        self._device[:] = 0
        with self._store(self._disk()) as store:
            self._clock(READ, lambda: _done(self._onboard(store)))
            self._check()
        self._clock(PLAIN_READ, self._read_plainly)

    def _disk(self) -> DiskConfig:
        return DiskConfig(folder=self._folder, num_blocks=len(self._keys), write="arrival")

    def _store(self, disk: DiskConfig | None) -> TieredStore:
        count = len(self._keys)
        config = TiersConfig(
            host=HostConfig(num_blocks=count + count // 4, huge_pages=True),
            disk=disk,
            disk_threads=_DISK_THREADS,
            max_demote_blocks=count,
            onboard_timeout_s=_TIMEOUT_S,
        )
        return TieredStore(config, ArrayBlocks(self._device))

    def _offload(self, store: TieredStore) -> BlockJob:
        parents = [ROOT, *self._keys[:-1]]
        return store.offload(self._keys, parents, range(len(self._keys)))

    def _write(self, store: TieredStore) -> None:
        _done(self._offload(store))
        if not store.drain(_TIMEOUT_S):
            raise RuntimeError("blocks were not written in time")

    def _onboard(self, store: TieredStore) -> BlockJob:
        return store.onboard(self._keys, range(len(self._keys)))

    def _all_rows(self) -> tuple[range, Rows, range]:
        count = len(self._keys)
        return range(count), self._pool, range(count)

    def _read_plainly(self) -> None:
        """Read the tier's own file, block by block, in the same number of threads."""
        flags = os.O_DIRECT if self.direct else 0
        try:
            fd = os.open(self._folder / "blocks", os.O_RDONLY | flags)
        except OSError:  # a file system without direct access, such as an older tmpfs
            self.direct = False
            fd = os.open(self._folder / "blocks", os.O_RDONLY)
        size = self._pool.shape[1]
        with ThreadPoolExecutor(_DISK_THREADS) as threads:
            rows = range(len(self._pool))
            list(threads.map(lambda i: os.preadv(fd, [self._pool[i].data], i * size), rows))
        os.close(fd)

    def _clock(self, what: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        self.speeds[what].append(self._nbytes / (time.perf_counter() - began) / 1e9)

    def _check(self) -> None:
        if not (self._device == self._content).all():
            raise RuntimeError("blocks came back wrong")


def _done(job: BlockJob) -> None:
    if not job.wait(_TIMEOUT_S) or job.num_ready < len(job.hashes):
        raise RuntimeError(f"blocks were not moved: {job.counts()}")
