"""NIXL over UCX, as vLLM uses it: lists prepared for the whole pool once, posted by index."""

import time
from typing import Any, cast

import numpy as np
from nixl_cu12._api import nixl_agent, nixl_agent_config

from benchmarks.kvtransfer.peers import pools
from benchmarks.kvtransfer.peers.pair import Pair
from benchmarks.kvtransfer.peers.protocol import Ask, Blocks, Bytes, OwnerEnd, ReaderEnd, Run

_POLL_S = 50e-6  # polling without a pause starves NIXL's own thread where cores are few


class Owner(OwnerEnd):
    def __init__(self, option: str) -> None:
        self._agent = _agent("owner")

    def allocate(self) -> Bytes:
        return pools.allocate()

    def start(self, pool: Bytes) -> object:
        address = pool.ctypes.data
        self._registered = _register(self._agent, pool)
        return self._agent.get_agent_metadata(), address

    def answer(self, question: object) -> object:
        self._agent.add_remote_agent(question)
        return None

    def close(self) -> None:
        self._agent.deregister_memory(self._registered)


class Reader(ReaderEnd):
    def start(self, pool: Bytes, hello: object, ask: Ask) -> None:
        metadata, self._theirs = cast(tuple[bytes, int], hello)
        self._ours = pool.ctypes.data
        self._agent = _agent("reader")
        self._registered = _register(self._agent, pool)
        self._agent.add_remote_agent(metadata)
        ask(self._agent.get_agent_metadata())
        self._lists: tuple[Any, Any] | None = None

    def prepare(self, run: Run) -> None:
        self._release()
        ours, theirs = (_whole_pool(a, run.block_bytes) for a in (self._ours, self._theirs))
        into = self._agent.prep_xfer_dlist("NIXL_INIT_AGENT", ours, "DRAM")
        source = self._agent.prep_xfer_dlist("owner", theirs, "DRAM")
        self._lists = into, source

    def read(self, into: Blocks, source: Blocks, block_bytes: int) -> None:
        assert self._lists is not None
        agent = self._agent
        ours, theirs = self._lists
        indices = into.astype(np.int32), source.astype(np.int32)
        handle = agent.make_prepped_xfer("READ", ours, indices[0], theirs, indices[1])
        state = agent.transfer(handle)
        while state == "PROC":
            time.sleep(_POLL_S)
            state = agent.check_xfer_state(handle)
        if state != "DONE":
            raise RuntimeError(f"the transfer ended as {state}")
        agent.release_xfer_handle(handle)

    def close(self) -> None:
        self._release()
        self._agent.deregister_memory(self._registered)

    def _release(self) -> None:
        for prepared in self._lists or ():
            self._agent.release_dlist_handle(prepared)
        self._lists = None


def contender(option: str) -> Pair:
    return Pair.of(__name__, option, Reader())


def _agent(name: str) -> Any:
    return nixl_agent(name, nixl_agent_config(backends=["UCX"]))


def _register(agent: Any, pool: Bytes) -> Any:
    return agent.register_memory([(pool.ctypes.data, pool.nbytes, 0, "")], "DRAM")


def _whole_pool(address: int, block_bytes: int) -> Any:
    count = pools.POOL_BYTES // block_bytes
    table = np.zeros((count, 3), np.uint64)  # address, length, device
    table[:, 0] = address + np.arange(count) * block_bytes
    table[:, 1] = block_bytes
    return table
