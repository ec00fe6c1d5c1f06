"""A worker that offloads blocks, faster than they can be read, until it is killed.

    disk_writer.py FOLDER FIRST WRITE

Prints a line for each blocks that were taken, their number and whether they are its own.
"""

import sys
from pathlib import Path

import numpy as np

from stafette.kvtransfer.blocks import ROOT
from stafette.kvtransfer.tiers.config import DiskConfig, HostConfig, TiersConfig
from stafette.kvtransfer.tiers.device import ArrayBlocks
from stafette.kvtransfer.tiers.store import TieredStore

BLOCK_BYTES = 1 << 16
BATCH = 16


def content_of(key):
    seed = int.from_bytes(key, "little")
    return np.random.default_rng(seed).integers(0, 256, BLOCK_BYTES, np.uint8)


def main():
    folder, number, write = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    disk = DiskConfig(folder=folder, num_blocks=96, write=write, admission="always")
    config = TiersConfig(host=HostConfig(num_blocks=48), disk=disk)
    memory = np.zeros((BATCH, BLOCK_BYTES), np.uint8)
    store = TieredStore(config, ArrayBlocks(memory))
    while True:
        keys = [b"%016d" % i for i in range(number, number + BATCH)]
        for row, key in zip(memory, keys, strict=True):
            row[:] = content_of(key)
        job = store.offload(keys, [ROOT] * BATCH, range(BATCH))
        assert job.wait(10)
        number += BATCH
        print(number, store.stats().disk.counters.stored, flush=True)


if __name__ == "__main__":
    main()
