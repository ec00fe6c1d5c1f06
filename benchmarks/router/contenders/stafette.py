"""stafette's KvIndex and KvRouter, with events as they come out of the event stream's decoder."""

import struct
import time
from collections.abc import Sequence
from itertools import count
from typing import Any

from benchmarks.router.contenders.protocol import Chain, IndexContender, PlacementContender
from stafette.kvtransfer.blocks import ROOT
from stafette.kvtransfer.events import BlockRemoved, BlockStored, EventBatch
from stafette.router.hashing import Hashers, PromptHasher
from stafette.router.index import CacheSpec, IndexConfig, KvIndex, Match, Overlap
from stafette.router.request import Request, WorkerSpec
from stafette.router.router import KvRouter

BLOCK_SIZE = 16
HASHERS = Hashers("secret", BLOCK_SIZE)
_PACK = struct.Struct("<Q").pack
_FILL = b"\0" * 8  # our hashes have 16 bytes


class Index(IndexContender):
    def __init__(self, workers: int) -> None:
        self._index = KvIndex(HASHERS, IndexConfig(max_entries=50_000_000))
        self._names = [str(worker) for worker in range(workers)]
        self._seq = 0
        fingerprint = HASHERS.of("").fingerprint
        for name in self._names:
            spec = CacheSpec(target=name, block_size=BLOCK_SIZE, fingerprint=fingerprint)
            self._index.register(spec)

    def hashes(self, chain: Chain) -> tuple[bytes, ...]:
        return tuple(map(_hash, chain))

    def encode_stored(self, worker: int, parent: int | None, hashes: Any) -> EventBatch:
        above = None if parent is None else _hash(parent)
        return self._batch(worker, BlockStored(above, hashes))

    def encode_removed(self, worker: int, hashes: Any) -> EventBatch:
        return self._batch(worker, BlockRemoved(hashes))

    def apply(self, event: Any) -> None:
        self._index.on_batch(event)

    def flush(self) -> None:
        """Events are applied when `apply` returns."""

    def query(self, chain: Chain) -> bytes:
        return b"".join(map(_hash, chain))

    def look_up(self, query: Any) -> Match:
        return self._index.match(query)

    def match(self, query: Any) -> dict[str, Overlap]:
        return self._index.match(query).overlaps()

    def depth(self, held: Any) -> int:
        total: int = held.total
        return total

    def _batch(self, worker: int, event: BlockStored | BlockRemoved) -> EventBatch:
        self._seq += 1
        return EventBatch(self._names[worker], 1, self._seq, 0.0, (event,))


def _hash(number: int) -> bytes:
    return _PACK(number) + _FILL


class Placement(PlacementContender):
    """The whole router, events included; `place` books nothing, as Dynamo's `select`."""

    def start(self, workers: int, block_size: int) -> None:
        hashers = Hashers("secret", block_size)
        self._hasher = hashers.of("")
        self._prompts = PromptHasher(hashers)
        self._router = KvRouter(hashers)
        self._numbers = count(1)
        for worker in range(workers):
            cache = CacheSpec(
                target=str(worker), block_size=block_size, fingerprint=self._hasher.fingerprint
            )
            self._router.register(WorkerSpec(cache=cache, total_blocks=1_000_000))

    def stored(self, worker: int, parent: Sequence[int], tokens: Sequence[int]) -> None:
        above = self._hasher.hash_blocks(parent)
        hashes = self._hasher.hash_blocks(tokens, above[-1] if above else ROOT)
        event = BlockStored(above[-1] if above else None, tuple(hashes))
        batch = EventBatch(str(worker), 1, next(self._numbers), 0.0, (event,))
        self._router.index.on_batch(batch)

    def settle(self) -> None:
        """Events are applied when `stored` returns."""

    def place(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
        return [self._place(tokens) for tokens in prompts]

    def _place(self, tokens: Sequence[int]) -> tuple[int, float]:
        started = time.perf_counter()
        request = Request(
            request_id=str(next(self._numbers)),
            chain=self._prompts.chain(tokens),
            prompt_tokens=len(tokens),
        )
        placement = self._router.select(request)
        return int(placement.decode), time.perf_counter() - started

    def close(self) -> None:
        """Nothing runs."""
