"""A worker whose host tier others may read.

    peer_owner.py NAME FOLDER HOST_BLOCKS NUM_BLOCKS

Prints its metadata, then the number of its pinned blocks for each line that comes, until `quit`.
"""

import sys
from pathlib import Path

import numpy as np

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.blocks import ROOT
from stafette.kvtransfer.tiers.config import DiskConfig, HostConfig, TiersConfig
from stafette.kvtransfer.tiers.device import ArrayBlocks
from stafette.kvtransfer.tiers.host_share import HostShare
from stafette.kvtransfer.tiers.store import TieredStore

TOKEN = b"a token for the tests"
BLOCK_BYTES = 4096


def content_of(key):
    seed = int.from_bytes(key, "little")
    return np.random.default_rng(seed).integers(0, 256, BLOCK_BYTES, np.uint8)


def fill(store, memory, num_blocks):
    """Offload one chain, a few blocks at a time."""
    parent = ROOT
    for number in range(num_blocks):
        key = f"{number:03}".encode().ljust(16, b"\0")
        memory[0] = content_of(key)
        assert store.offload([key], [parent], [0]).wait(10)
        assert store.drain(10)
        parent = key


def main():
    name, folder, host_blocks, num_blocks = sys.argv[1:]
    memory = np.zeros((1, BLOCK_BYTES), np.uint8)
    disk = DiskConfig(folder=Path(folder), num_blocks=256, admission="always")
    config = TiersConfig(host=HostConfig(num_blocks=int(host_blocks)), disk=disk)
    agent = Agent(AgentConfig(name=name, token=TOKEN, transports=("shm",)))
    with TieredStore(config, ArrayBlocks(memory)) as store:
        fill(store, memory, int(num_blocks))
        share = HostShare(agent, store)
        print(agent.metadata().hex(), flush=True)
        for line in sys.stdin:
            if line.strip() == "quit":
                break
            print(store.stats().host.pinned_blocks, flush=True)
        share.close()
    agent.close()


if __name__ == "__main__":
    main()
