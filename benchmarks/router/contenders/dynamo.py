"""Dynamo's RadixTree and SelectionService, through its Python binding.

The tree's events are JSON, a writer thread applies them. The service takes vLLM's events over
ZeroMQ, and decides in a call that is awaited.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgpack  # type: ignore[import-untyped]
import orjson
import zmq
from dynamo._core import RadixTree, SelectionService

from benchmarks.router.contenders.protocol import Chain, IndexContender, PlacementContender
from benchmarks.router.workload import PER_EVENT

_RANK = 0
_JOIN_S, _SETTLE_S = 2.0, 5.0


class Index(IndexContender):
    def __init__(self, workers: int) -> None:
        self._tree = RadixTree()
        self._next_id = [0] * workers

    def hashes(self, chain: Chain) -> list[int]:
        return list(chain)

    def encode_stored(self, worker: int, parent: int | None, hashes: Any) -> tuple[int, bytes]:
        # A chained hash serves as the block's name and as that of its content.
        blocks = [{"block_hash": number, "tokens_hash": number} for number in hashes]
        return self._event(worker, {"stored": {"parent_hash": parent, "blocks": blocks}})

    def encode_removed(self, worker: int, hashes: Any) -> tuple[int, bytes]:
        return self._event(worker, {"removed": {"block_hashes": hashes}})

    def apply(self, event: Any) -> None:
        self._tree.apply_event(*event)

    def flush(self) -> None:
        self._tree.find_matches([1])  # waits its turn behind the events

    def query(self, chain: Chain) -> list[int]:
        return list(chain)

    def look_up(self, query: Any) -> Any:
        return self._tree.find_matches(query)

    def match(self, query: Any) -> dict[int, int]:
        return {worker: depth for (worker, _), depth in self.look_up(query).scores.items()}

    def depth(self, held: Any) -> int:
        blocks: int = held
        return blocks

    def _event(self, worker: int, data: dict[str, Any]) -> tuple[int, bytes]:
        number = self._next_id[worker]
        self._next_id[worker] += 1
        return worker, orjson.dumps({"event_id": number, "data": data, "dp_rank": _RANK})


class Placement(PlacementContender):
    def start(self, workers: int, block_size: int) -> None:
        self._block_size = block_size
        self._context = zmq.Context()
        self._sockets = [self._context.socket(zmq.PUB) for _ in range(workers)]
        self._seqs = [0] * workers
        self._next_hash = 1
        self._common: list[int] = []  # the names of the blocks with which all prompts begin
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._start())
        time.sleep(_JOIN_S)  # a subscriber that comes late misses what was sent before

    async def _start(self) -> None:
        self._service = SelectionService()
        for worker, socket in enumerate(self._sockets):
            socket.set_hwm(0)
            port = socket.bind_to_random_port("tcp://127.0.0.1")
            spec = {
                "worker_id": worker,
                "model_name": "m",
                "endpoint": f"http://127.0.0.1:{port}",
                "block_size": self._block_size,
                "total_kv_blocks": 1_000_000,
                "kv_events_endpoints": {0: f"tcp://127.0.0.1:{port}"},
            }
            await self._service.upsert_worker(spec)

    def stored(self, worker: int, parent: Sequence[int], tokens: Sequence[int]) -> None:
        above = self._common[-1] if parent else None
        count = len(tokens) // self._block_size
        hashes = list(range(self._next_hash, self._next_hash + count))
        self._next_hash += count
        if not parent:
            hashes = self._common = self._common or hashes
        for start in range(0, count, PER_EVENT):
            some = hashes[start : start + PER_EVENT]
            content = tokens[start * self._block_size : (start + len(some)) * self._block_size]
            stored = ["BlockStored", some, above, content, self._block_size, None, "GPU"]
            self._send(worker, [time.time(), [stored], 0])
            above = some[-1]

    def settle(self) -> None:
        time.sleep(_SETTLE_S)

    def place(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
        return self._loop.run_until_complete(self._place(prompts))

    async def _place(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
        placed = []
        for tokens in prompts:
            started = time.perf_counter()
            answer = await self._service.select({"model_name": "m", "token_ids": tokens})
            placed.append((answer["worker_id"], time.perf_counter() - started))
        return placed

    def close(self) -> None:
        self._service.shutdown()
        self._context.destroy(linger=0)

    def _send(self, worker: int, batch: Sequence[Any]) -> None:
        number = self._seqs[worker].to_bytes(8, "big")
        self._seqs[worker] += 1
        self._sockets[worker].send_multipart([b"", number, msgpack.packb(batch)])
