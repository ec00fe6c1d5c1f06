"""An owner in a process of its own: offers a pool whose every word tells where it is.

    python owner_process.py NAME TRANSPORT NBYTES

It prints its metadata and, for every line that it reads, a new ticket for all blocks; both in hex.
The line "exec" makes another program of the process.
"""

import os
import sys

import numpy as np

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.memory import SharedMemory

BLOCK_BYTES = 1 << 20


def content(nbytes: int) -> np.ndarray:
    words = np.arange(1, nbytes // 8 + 1, dtype=np.uint64)
    return (words * np.uint64(0x9E3779B97F4A7C15)).view(np.uint8)


def main() -> None:
    name, transport, nbytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
    named = f"pool-{os.getpid()}"
    shared = SharedMemory(named, nbytes) if transport == "shm" else None
    pool = shared.array if shared is not None else np.zeros(nbytes, np.uint8)
    pool[:] = content(nbytes)
    agent = Agent(AgentConfig(name=name, token=b"the cluster's token", transports=(transport,)))
    agent.register("pool", shared if shared is not None else pool, block_bytes=BLOCK_BYTES)
    print(agent.metadata().hex(), flush=True)
    for line in sys.stdin:
        if line.strip() == "exec":
            script = "import time; print('another program', flush=True); time.sleep(600)"
            os.execv(sys.executable, [sys.executable, "-c", script])
        print(agent.grant("pool", range(nbytes // BLOCK_BYTES), ttl_s=60.0).hex(), flush=True)


if __name__ == "__main__":
    main()
