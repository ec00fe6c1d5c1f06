"""An agent in a process of its own: does what it is told, one JSON list [command, ...] a line.

python peer_process.py '{"name": ..., "pool_bytes": ...}'
"""

import json
import sys
import threading

import numpy as np

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.errors import TransferError
from stafette.kvtransfer.extents import Extents

BLOCK = 4096


class Peer:
    def __init__(self, name: str, pool_bytes: int, host: str = "127.0.0.1") -> None:
        token = b"the token of this cluster"
        self.agent = Agent(AgentConfig(name=name, token=token, host=host, transports=("tcp",)))
        self.pool = np.arange(pool_bytes // 8, dtype=np.uint64).view(np.uint8)
        self.agent.register("pool", self.pool, block_bytes=BLOCK)
        self.outcomes: list[str] = []

    def metadata(self) -> str:
        return self.agent.metadata().hex()

    def grant(self) -> str:
        return self.agent.grant("pool", range(len(self.pool) // BLOCK)).hex()

    def read(self, metadata: str, ticket: str) -> None:
        """Read the whole pool of a peer again and again, 64 times in each transfer."""
        self.agent.add_peer(bytes.fromhex(metadata))
        lease = self.agent.accept(bytes.fromhex(ticket))
        threading.Thread(target=self._read, args=(lease,), daemon=True).start()

    def read_outcomes(self) -> list[str]:
        """Return how the reads have ended so far: nothing, or the error's class."""
        return self.outcomes

    def num_answered(self) -> int:
        """Return how many requests native code has answered."""
        return int(self.agent._transports["tcp"]._tally.native[0])

    def _read(self, lease) -> None:
        whole = Extents.of("pool", [(0, len(self.pool))] * 64)
        while True:
            try:
                self.agent.read(whole, whole, lease).wait()
                self.outcomes.append("")
            except TransferError as error:
                self.outcomes.append(type(error).__name__)


def main() -> None:
    peer = Peer(**json.loads(sys.argv[1]))
    print(json.dumps(peer.metadata()), flush=True)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        print(json.dumps(getattr(peer, command)(*arguments)), flush=True)
    peer.agent.close()


if __name__ == "__main__":
    main()
