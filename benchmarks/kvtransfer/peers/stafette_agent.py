"""stafette: two agents and one transport, a lease held over the whole pool."""

from typing import cast

from benchmarks.kvtransfer.peers import pools
from benchmarks.kvtransfer.peers.pair import Pair
from benchmarks.kvtransfer.peers.protocol import Ask, Blocks, Bytes, OwnerEnd, ReaderEnd, Run
from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.memory import SharedMemory

_TOKEN = b"a benchmark's token"
_LEASE_S = 60.0
_TIMEOUT_S = 60.0


class Owner(OwnerEnd):
    """Registers the pool once for each size of block: that is the grain of its leases."""

    def __init__(self, option: str) -> None:
        self._agent = Agent(AgentConfig(name="owner", token=_TOKEN, transports=(option,)))

    def allocate(self) -> Bytes:
        self._memory = SharedMemory("pool", pools.POOL_BYTES, huge_pages=True)
        return self._memory.array

    def start(self, pool: Bytes) -> object:
        self._sizes: set[int] = set()
        return self._agent.metadata()

    def answer(self, question: object) -> object:
        """Return a ticket for all blocks of that size."""
        block_bytes = int(str(question))
        name = f"pool-{block_bytes}"
        if block_bytes not in self._sizes:
            self._agent.register(name, self._memory, block_bytes=block_bytes)
            self._sizes.add(block_bytes)
        blocks = range(pools.POOL_BYTES // block_bytes)
        return self._agent.grant(name, blocks, ttl_s=_LEASE_S)

    def close(self) -> None:
        self._agent.close()
        self._memory.close()


class Reader(ReaderEnd):
    def __init__(self, option: str) -> None:
        self._agent = Agent(AgentConfig(name="reader", token=_TOKEN, transports=(option,)))

    def start(self, pool: Bytes, hello: object, ask: Ask) -> None:
        self._agent.register("pool", pool)
        self._agent.add_peer(cast(bytes, hello))
        self._ask = ask

    def prepare(self, run: Run) -> None:
        """Take a new lease: both processes were stopped for longer than one lasts."""
        self._source = f"pool-{run.block_bytes}"
        self._lease = self._agent.accept(cast(bytes, self._ask(run.block_bytes)))

    def read(self, into: Blocks, source: Blocks, block_bytes: int) -> None:
        ours = Extents.of_blocks("pool", into, block_bytes)
        theirs = Extents.of_blocks(self._source, source, block_bytes)
        self._agent.read(ours, theirs, self._lease, timeout_s=_TIMEOUT_S).wait()

    def close(self) -> None:
        self._agent.close()


def contender(option: str) -> Pair:
    return Pair.of(__name__, option, Reader(option))
