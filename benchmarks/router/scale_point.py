"""One point of scale.py, in a fresh process: a router with so many workers and blocks.

All times are of this thread's CPU: the router waits for nothing, and others may want the cores.
"""

import asyncio
import gc
import os
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any, TypeVar

from benchmarks.common.answering import answer_lines
from stafette.kvtransfer.blocks import HASH_BYTES
from stafette.kvtransfer.events import BlockRemoved, BlockStored, EventBatch, KvEvent
from stafette.router.hashing import Hashers
from stafette.router.index import CacheSpec, IndexConfig
from stafette.router.request import Request, Role, WorkerSpec
from stafette.router.router import KvRouter, RouterConfig

BLOCK_SIZE = 16
COMMON, OWN = 32, 480  # blocks of a prompt: 8,192 tokens, of which all share a beginning
PER_EVENT = 64
_SAMPLE = 2_000  # chains that are asked for
_AT_ONCE = 500  # events that are made before the clock runs
_LEAST_POOL = 16_384  # blocks of a worker, not all of them in use
_PER_HOST = 8  # workers
_PER_WORKER = 4  # requests under way
_SETTLED = 1_200  # decisions: what a router keeps of the latest ones is full by then

Hashes = tuple[bytes, ...]
Item = TypeVar("Item")


class Point:
    def __init__(self, workers: int, blocks: int, prefill_share: float = 0.0) -> None:
        rng = random.Random(blocks + workers)
        hashers = Hashers("scale", BLOCK_SIZE)
        config = RouterConfig(index=IndexConfig(max_entries=blocks + workers * COMMON + 1_000_000))
        self.router = KvRouter(hashers, config)
        self.workers = [f"w{number}" for number in range(workers)]
        self.num_chains = max(workers, blocks // OWN)
        self.common = _chain(rng, COMMON)
        self.sample = [_chain(rng, OWN) for _ in range(min(_SAMPLE, self.num_chains))]
        self._rng = rng
        self._seq = count(1)
        fingerprint = hashers.of("").fingerprint
        total = max(_LEAST_POOL, blocks // workers + COMMON)
        others: Role = "decode" if prefill_share else "both"
        for number, name in enumerate(self.workers):
            cache = CacheSpec(target=name, block_size=BLOCK_SIZE, fingerprint=fingerprint)
            computes = int((number + 1) * prefill_share) > int(number * prefill_share)
            spec = WorkerSpec(
                cache=cache,
                role="prefill" if computes else others,
                worker_class="scale",
                rack="r",
                host=f"h{number // _PER_HOST}" if prefill_share else "",
                total_blocks=total,
            )
            self.router.register(spec)

    def fill(self) -> dict[str, float]:
        """Store all blocks; return the rate at which that goes, and what they take."""
        gc.collect()
        before, spent_s, events = _resident_bytes(), 0.0, 0
        for batch in self._batches(self._stored()):
            spent_s += self._apply(batch)
            events += len(batch)
        gc.collect()
        entries = len(self.workers) * COMMON + self.num_chains * OWN
        return {
            "entries": entries,
            "index_mib": (_resident_bytes() - before) / 2**20,
            "block_bytes": (_resident_bytes() - before) / (self.num_chains * OWN),
            "fill_events_s": events / spent_s,
            "fill_blocks_s": entries / spent_s,
        }

    def churn(self, events: int) -> dict[str, float]:
        """Forget and store single blocks, as caches do that are full."""
        spent_s = 0.0
        for batch in self._batches(self._churned(events)):
            spent_s += self._apply(batch)
        return {"churn_events_s": events / spent_s}

    def place(self, requests: int) -> dict[str, float]:
        """Return microseconds for a placement, among as many requests as workers may have."""
        under_way: deque[str] = deque()
        times = []
        for number in range(_SETTLED + requests):
            request = self._request(number)
            began = time.thread_time()
            self.router.place(request)
            times.append(time.thread_time() - began)
            self.router.first_token(request.request_id)
            under_way.append(request.request_id)
            if len(under_way) > _PER_WORKER * len(self.workers):
                self.router.free(under_way.popleft())
        ordered = sorted(times[_SETTLED:])
        return {
            "place_p50_us": ordered[len(ordered) // 2] * 1e6,
            "place_p99_us": ordered[int(0.99 * (len(ordered) - 1))] * 1e6,
        }

    def _stored(self) -> Iterator[tuple[str, KvEvent]]:
        for name in self.workers:
            yield name, BlockStored(None, self.common)
        for number in range(self.num_chains):
            known = number < len(self.sample)
            chain = self.sample[number] if known else _chain(self._rng, OWN)
            parent = self.common[-1]
            for run in _batched(chain, PER_EVENT):
                yield self._holder(number), BlockStored(parent, run)
                parent = run[-1]

    def _churned(self, events: int) -> Iterator[tuple[str, KvEvent]]:
        for number in range(events // 2):
            which = number % len(self.sample)
            parent, block = self.sample[which][-2:]
            yield self._holder(which), BlockRemoved((block,))
            yield self._holder(which), BlockStored(parent, (block,))

    def _holder(self, chain: int) -> str:
        return self.workers[chain % len(self.workers)]

    def _batches(self, events: Iterator[tuple[str, KvEvent]]) -> Iterator[list[EventBatch]]:
        for some in _batched(events, _AT_ONCE):
            yield [EventBatch(name, 1, next(self._seq), 0.0, (event,)) for name, event in some]

    def _apply(self, batches: Sequence[EventBatch]) -> float:
        on_batch = self.router.index.on_batch
        began = time.thread_time()
        for batch in batches:
            on_batch(batch)
        return time.thread_time() - began

    def _request(self, number: int) -> Request:
        """Half of the prompts are held whole by one worker, two in five only begun, others new."""
        kind = self._rng.random()
        own = self._rng.choice(self.sample) if kind < 0.5 else _chain(self._rng, OWN)
        common = self.common if kind < 0.9 else _chain(self._rng, COMMON)
        chain = b"".join((*common, *own))
        tokens = (COMMON + OWN) * BLOCK_SIZE + 1
        return Request(request_id=str(number), chain=chain, prompt_tokens=tokens)


def _batched(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    waiting = iter(items)
    while some := tuple(islice(waiting, size)):
        yield some


def _chain(rng: random.Random, length: int) -> Hashes:
    data = rng.randbytes(HASH_BYTES * length)
    return tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def measure(
    workers: int, blocks: int, events: int, requests: int, prefill_share: float
) -> dict[str, Any]:
    point = Point(workers, blocks, prefill_share)
    return {**point.fill(), **point.churn(events), **point.place(requests)}


if __name__ == "__main__":
    asyncio.run(answer_lines({"measure": measure}))
