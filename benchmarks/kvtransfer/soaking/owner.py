"""A process that owns a pool: grants, offers, and overwrites what is not leased, all the time.

    python -P -m benchmarks.kvtransfer.soaking.owner NAME TTL_S SEED

Now and then it is rude, and overwrites a block under lease: its readers must notice. It answers one
JSON line, [command, ...], with one line.
"""

import json
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

from benchmarks.kvtransfer.soaking.content import (
    BLOCK_BYTES,
    NUM_BLOCKS,
    POOL_BYTES,
    block_content,
)
from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.kvtransfer.memory import SharedMemory

TOKEN = b"the token of a soak"
POOL = "pool"
_PAUSE_S = 0.002  # between two overwritten blocks
_RUDE = 0.02  # of them are under lease


class Owner:
    """One lock around blocks and versions; the agent has its own."""

    def __init__(self, name: str, ttl_s: float, seed: int) -> None:
        self._random = random.Random(seed)
        self._memory = SharedMemory(POOL, POOL_BYTES)
        self._rows = self._memory.array.view("u8").reshape(NUM_BLOCKS, -1)
        self._versions = [self._random.getrandbits(20) for _ in range(NUM_BLOCKS)]
        for block, version in enumerate(self._versions):
            self._rows[block] = block_content(block, version)
        self._being_filled: set[int] = set()
        self._lock = threading.RLock()
        self._closed = threading.Event()
        lease = LeaseConfig(ttl_s=ttl_s, max_life_s=max(30.0, ttl_s))
        self.agent = Agent(AgentConfig(name=name, token=TOKEN, lease=lease))
        self.agent.register(POOL, self._memory, block_bytes=BLOCK_BYTES)
        threading.Thread(target=self._overwrite, daemon=True).start()

    def metadata(self) -> str:
        return self.agent.metadata().hex()

    def grant(self, count: int) -> list[Any]:
        """Return (ticket, blocks, their versions) of random blocks."""
        with self._lock:
            free = [b for b in range(NUM_BLOCKS) if b not in self._being_filled]
            blocks = self._random.sample(free, count)
            ticket = self.agent.grant(POOL, blocks)
            return [ticket.hex(), blocks, [self._versions[block] for block in blocks]]

    def offer(self, count: int) -> list[Any]:
        with self._lock:
            leased = set(self.agent.leased(POOL).tolist()) | self._being_filled
            blocks = self._random.sample([b for b in range(NUM_BLOCKS) if b not in leased], count)
            self._being_filled.update(blocks)
            ticket = self.agent.offer(POOL, blocks, on_ended=lambda _: self._refill(blocks))
            return [ticket.hex(), blocks]

    def holds(self, blocks: list[int], version: int) -> bool:
        """Whether blocks that are being filled hold that version; the offer still lives."""
        return all((self._rows[b] == block_content(b, version)).all() for b in blocks)

    def revoke(self, ticket: str) -> bool:
        return self.agent.revoke(bytes.fromhex(ticket))

    def living(self) -> list[int]:
        """Return how many leases live, and how many blocks they hold."""
        return [self.agent.stats().leases.living, len(self.agent.leased(POOL))]

    def close(self) -> None:
        self._closed.set()
        self.agent.close()

    def _refill(self, blocks: list[int]) -> None:
        """An offer has ended: whatever was written there, it is ours again."""
        with self._lock:
            for block in blocks:
                self._renew(block)
            self._being_filled.difference_update(blocks)

    def _overwrite(self) -> None:
        while not self._closed.wait(_PAUSE_S):
            with self._lock:
                block = self._random.randrange(NUM_BLOCKS)
                rude = self._random.random() < _RUDE
                held = block in self._being_filled
                if not held and (rude or block not in self.agent.leased(POOL)):
                    self._renew(block)

    def _renew(self, block: int) -> None:
        self.agent.overwrite(POOL, [block])
        self._versions[block] += 1
        self._rows[block] = block_content(block, self._versions[block])


def main() -> None:
    name, ttl_s, seed = sys.argv[1:]
    owner = Owner(name, float(ttl_s), int(seed))
    commands: dict[str, Callable[..., Any]] = {
        "grant": owner.grant,
        "offer": owner.offer,
        "holds": owner.holds,
        "revoke": owner.revoke,
        "living": owner.living,
    }
    print(json.dumps(owner.metadata()), flush=True)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        print(json.dumps(commands[command](*arguments)), flush=True)
    owner.close()


if __name__ == "__main__":
    main()
