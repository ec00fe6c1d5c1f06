"""Measures a hand-over's bytes: blocks read out of another process, by an agent as workers have.

Both pools lie in host memory of this machine, so that a network is no part of what is measured.
"""

import multiprocessing
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, get_args

import numpy as np

from stafette.kvtransfer.agent import Agent
from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.leases.lease import Lease
from stafette.kvtransfer.memory import SharedMemory
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.points import Point, Transport, summary

_ANSWER_S = 60.0
_TIMEOUT_S = 60.0
_LEASE_S = 600.0
_MOST_BYTES = 64 << 20  # of one read
_POOLS = 4  # reads' worth of blocks, so that caches do not hold them
SIZES = (1, 4, 16, 64, 256)  # blocks


@dataclass(frozen=True, slots=True)
class Transfers:
    """A reader and its leased blocks."""

    agent: Agent
    lease: Lease
    num_blocks: int
    block_bytes: int
    transport: Transport

    def measure(self, count: int, samples: int) -> Point:
        """Read so many blocks that lie here and there; the first reads are not counted."""
        places = np.random.default_rng(count)
        seconds = [self._read(places, count) for _ in range(samples + 2)][2:]
        told: dict[str, Any] = {"nbytes": count * self.block_bytes, "transport": self.transport}
        return Point(kind="transfer", **summary(seconds), **told)

    def _read(self, places: np.random.Generator, count: int) -> float:
        into, source = (
            Extents.of_blocks("pool", places.permutation(self.num_blocks)[:count], self.block_bytes)
            for _ in range(2)
        )
        began = time.perf_counter()
        self.agent.read(into, source, self.lease, timeout_s=_TIMEOUT_S).wait()
        return time.perf_counter() - began


def sizes(block_bytes: int) -> list[int]:
    """Return how many blocks are read at once: no more than are worth waiting for."""
    return [count for count in SIZES if count == 1 or count * block_bytes <= _MOST_BYTES]


@contextmanager
def open_transfers(transport: Transport, block_bytes: int) -> Iterator[Transfers]:
    """Start a process that owns blocks, and lease them from here."""
    if transport not in get_args(Transport):
        raise InvalidSetting("--transfer", transport, f"must be {' or '.join(get_args(Transport))}")
    num_blocks = _POOLS * sizes(block_bytes)[-1]
    token = secrets.token_bytes(32)
    context = multiprocessing.get_context("spawn")  # agents have threads
    ours, theirs = context.Pipe()
    told = (theirs, token, transport, num_blocks, block_bytes)
    process = context.Process(target=own, args=told, daemon=True)
    process.start()
    theirs.close()
    memory = SharedMemory("profile", num_blocks * block_bytes)
    agent = Agent(AgentConfig(name="reader", token=token, transports=(transport,)))
    try:
        if not ours.poll(_ANSWER_S):
            raise InvalidSetting("--transfer", transport, "the other process does not answer")
        metadata, ticket = ours.recv_bytes(), ours.recv_bytes()
        agent.register("pool", memory, block_bytes=block_bytes)
        agent.add_peer(metadata)
        yield Transfers(agent, agent.accept(ticket), num_blocks, block_bytes, transport)
    finally:
        ours.close()  # the owner ends when it sees that
        agent.close()
        memory.close()
        process.join(_ANSWER_S)
        process.kill()


def own(pipe: Connection, token: bytes, transport: str, num_blocks: int, block_bytes: int) -> None:
    """Offer blocks until the other end of the pipe is closed."""
    memory = SharedMemory("profile", num_blocks * block_bytes)
    memory.array[:] = np.arange(len(memory.array), dtype=np.uint8)  # each page is there
    with Agent(AgentConfig(name="owner", token=token, transports=(transport,))) as agent:
        agent.register("pool", memory, block_bytes=block_bytes)
        pipe.send_bytes(agent.metadata())
        pipe.send_bytes(agent.grant("pool", range(num_blocks), ttl_s=_LEASE_S))
        pipe.poll(None)
    memory.close()


def missing(points: Sequence[Point], transport: str, block_bytes: int) -> list[int]:
    """Return the sizes of which nothing is known yet."""
    known = {p.nbytes: p.transport for p in points if p.kind == "transfer"}
    other = next((each for each in known.values() if each != transport), None)
    if other is not None:
        raise InvalidSetting("--transfer", transport, f"the file has {other}: name another file")
    return [count for count in sizes(block_bytes) if count * block_bytes not in known]
