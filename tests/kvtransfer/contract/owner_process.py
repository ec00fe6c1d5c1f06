"""A process that offers a pool: does what it is told, one JSON list [command, ...] a line.

    python owner_process.py '{"name": ..., "transport": ..., ...}'

It answers each line with one: [result, null], or [null, [class of the error, its text]].
"""

import json
import sys

import numpy as np

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.errors import KvTransferError
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.kvtransfer.memory import SharedMemory

POOL = "pool"
FACTOR = np.uint64(0x9E3779B97F4A7C15)


def content(nbytes: int, seed: int) -> np.ndarray:
    """Return bytes that tell where they are, different in every word and for every seed."""
    words = np.arange(-(-nbytes // 8), dtype=np.uint64) + np.uint64(1 + (seed << 40))
    return (words * FACTOR).view(np.uint8)[:nbytes]


def memory(kind: str, nbytes: int) -> tuple[object, np.ndarray]:
    """Return (what is registered, its bytes)."""
    if kind == "shared":
        shared = SharedMemory("pool", nbytes)
        return shared, shared.array
    array = np.zeros(nbytes, np.uint8)
    return array, array


class Owner:
    def __init__(self, settings: dict) -> None:
        self.block_bytes = settings["block_bytes"]
        self.seed = settings["seed"]
        self.buffer, self.pool = memory(settings["memory"], settings["pool_bytes"])
        self.pool[:] = content(len(self.pool), self.seed)
        self.ended: list[str] = []
        self.reads: dict[int, object] = {}
        self.agent = Agent(
            AgentConfig(
                name=settings["name"],
                token=settings["token"].encode(),
                transports=(settings["transport"],),
                lease=LeaseConfig(**settings.get("lease", {})),
                call_timeout_s=settings.get("call_timeout_s", 5.0),
            )
        )
        self.register()

    def register(self) -> None:
        self.agent.register(POOL, self.buffer, block_bytes=self.block_bytes)

    def deregister(self) -> None:
        self.agent.deregister(POOL)

    def metadata(self) -> str:
        return self.agent.metadata().hex()

    def add_peer(self, metadata: str) -> str:
        return self.agent.add_peer(bytes.fromhex(metadata))

    def grant(self, blocks: list[int] | None = None, ttl_s: float | None = None) -> str:
        chosen = self._all_blocks() if blocks is None else blocks
        note = lambda reason: self.ended.append(reason.name)  # noqa: E731
        return self.agent.grant(POOL, chosen, ttl_s, on_ended=note).hex()

    def offer(self, blocks: list[int] | None = None, ttl_s: float | None = None) -> str:
        chosen = self._all_blocks() if blocks is None else blocks
        note = lambda reason: self.ended.append(reason.name)  # noqa: E731
        return self.agent.offer(POOL, chosen, ttl_s, on_ended=note).hex()

    def revoke(self, ticket: str) -> bool:
        return self.agent.revoke(bytes.fromhex(ticket))

    def overwrite(self, blocks: list[int], seed: int) -> None:
        """Give blocks the content of another seed, as a pool's owner should."""
        self.agent.overwrite(POOL, blocks)
        fresh = content(len(self.pool), seed)
        for block in blocks:
            part = slice(block * self.block_bytes, (block + 1) * self.block_bytes)
            self.pool[part] = fresh[part]

    def ended_leases(self) -> list[str]:
        return self.ended

    def num_leased(self) -> int:
        return len(self.agent.leased(POOL))

    def same_as(self, seed: int, start: int, end: int) -> bool:
        """Whether a part of the pool holds what a pool of that seed has there."""
        wanted = content(len(self.pool), seed)[start:end]
        return bool(np.array_equal(self.pool[start:end], wanted))

    def read(self, ticket: str, into: list, source: list) -> int:
        """Begin to read from the process that drives this one; return a number for `settle`."""
        lease = self.agent.accept(bytes.fromhex(ticket))
        transfer = self.agent.read(Extents.of(POOL, into), Extents.of(POOL, source), lease)
        self.reads[transfer.id] = transfer
        return transfer.id

    def settle(self, number: int) -> bool:
        return self.reads.pop(number).wait(60.0)

    def notifications(self, timeout_s: float) -> list:
        return [[n.peer, n.payload.hex()] for n in self.agent.notifications(timeout_s)]

    def _all_blocks(self) -> range:
        return range(-(-len(self.pool) // self.block_bytes))


def main() -> None:
    owner = Owner(json.loads(sys.argv[1]))
    print(json.dumps([owner.metadata(), None]), flush=True)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = [getattr(owner, command)(*arguments), None]
        except KvTransferError as error:
            answer = [None, [type(error).__name__, str(error)]]
        print(json.dumps(answer), flush=True)
    owner.agent.close()


if __name__ == "__main__":
    main()
