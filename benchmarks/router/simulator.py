"""A trace of requests on simulated workers, placed by the real router on a virtual clock.

Time is kept simple on purpose, as in other studies of this trace. A worker computes one prompt
after the other at a fixed rate; answers are so many tokens of 10 ms; how many decode does not
matter. Its cache is an LRU of blocks that forgets the end of a prompt before its beginning.
"""

import heapq
import json
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from itertools import count
from operator import sub
from pathlib import Path
from typing import Any

from benchmarks.kvtransfer import trace_replay as replay
from stafette.kvtransfer.events import BlockRemoved, BlockStored, EventBatch, KvEvent
from stafette.router.hashing import Hashers
from stafette.router.index import CacheSpec
from stafette.router.performance import Performance
from stafette.router.request import Request, WorkerSpec
from stafette.router.reservations import Change
from stafette.router.router import KvRouter, Placement, RouterConfig
from stafette.router.sharing import Sharing
from stafette.router.transfer_cost import transfer_ms

BLOCK_SIZE = 512
PREFILL_TOKENS_S = 20_000.0
OVERHEAD_S = 0.020  # of a first token, beside its prompt's computation
TOKEN_S = 0.010
PROFILE = Performance(
    step_ms=0.0,
    prefill_ms_per_token=1e3 / PREFILL_TOKENS_S,
    prefill_ms_per_pair=0.0,
    decode_ms_per_seq=0.0,
    decode_ms_per_kv_token=0.0,
    prefill_stalls_decode=0.0,
)
BLOCK_BYTES = BLOCK_SIZE * 128 * 1024  # an 8-billion model's KV
HASHERS = Hashers("simulated", BLOCK_SIZE)


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[bytes, ...]


@dataclass(slots=True)
class Result:
    prompt_tokens: int = 0
    hit_tokens: int = 0  # of those, found in the worker's cache
    pulled_tokens: int = 0  # and pulled from another's
    ttfts_s: list[float] = field(default_factory=list)
    per_worker: list[int] = field(default_factory=list)
    decide_s: list[float] = field(default_factory=list)

    @property
    def hit_percent(self) -> float:
        return 100 * (self.hit_tokens + self.pulled_tokens) / self.prompt_tokens

    @property
    def ttft_mean_s(self) -> float:
        return sum(self.ttfts_s) / len(self.ttfts_s)

    @property
    def ttft_p99_s(self) -> float:
        return sorted(self.ttfts_s)[int(0.99 * len(self.ttfts_s))]


@dataclass(slots=True)
class Worker:
    name: str
    capacity: int  # blocks; 0: no bound
    cache: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    free_at_s: float = 0.0

    def cached(self, blocks: Sequence[bytes]) -> int:
        for number, block in enumerate(blocks):
            if block not in self.cache:
                return number
        return len(blocks)

    def use(self, blocks: Sequence[bytes], found: int) -> list[KvEvent]:
        """Hold all of these blocks, and tell what changed."""
        parent = blocks[found - 1] if found else None
        stored = BlockStored(parent, tuple(blocks[found:]))
        for block in reversed(blocks):
            self.cache[block] = None
            self.cache.move_to_end(block)
        removed = []
        while self.capacity and len(self.cache) > self.capacity:
            removed.append(self.cache.popitem(last=False)[0])
        events: list[KvEvent] = [stored] if stored.hashes else []
        return [*events, BlockRemoved(tuple(removed))] if removed else events


class Simulation:
    """Replays arrivals; several routers take turns, and hear of each other as `share_s` says."""

    def __init__(
        self,
        config: RouterConfig,
        workers: int,
        capacity: int,
        routers: int = 1,
        share_s: float | None = None,
    ) -> None:
        self.now = 0.0
        self.result = Result(per_worker=[0] * workers)
        self._workers = {f"w{number}": Worker(f"w{number}", capacity) for number in range(workers)}
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._share_s = share_s  # until a router hears of another's reservation; None: never
        self._routers: list[KvRouter] = []
        for number in range(routers):
            self._routers.append(self._router(config, number))
        self._seq = count(1)

    def run(self, arrivals: Iterable[Arrival]) -> Result:
        for number, arrival in enumerate(arrivals):
            self._advance(arrival.at_s)
            self._serve(str(number), arrival, self._routers[number % len(self._routers)])
        for router in self._routers:
            router.close()
        return self.result

    def _router(self, config: RouterConfig, number: int) -> KvRouter:
        sharing = Sharing(partial(self._share, number))
        router = KvRouter(HASHERS, config, lambda: self.now, sharing)
        fingerprint = HASHERS.of("").fingerprint
        for name in self._workers:
            cache = CacheSpec(target=name, block_size=BLOCK_SIZE, fingerprint=fingerprint)
            router.register(_spec(cache))
        return router

    def _share(self, number: int, change: Change) -> None:
        if self._share_s is None:
            return
        for other, router in enumerate(self._routers):
            if other != number:
                heard = partial(router.apply, str(number), change)
                self._at(self.now + self._share_s, heard)

    def _advance(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            self.now, _, action = heapq.heappop(self._later)
            action()
        self.now = now

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (when, next(self._numbers), action))

    def _serve(self, name: str, arrival: Arrival, router: KvRouter) -> None:
        request = Request(
            request_id=name, chain=b"".join(arrival.blocks), prompt_tokens=arrival.prompt_tokens
        )
        began = time.perf_counter()
        placement = router.place(request)
        self.result.decide_s.append(time.perf_counter() - began)
        worker = self._workers[placement.decode]
        found = worker.cached(arrival.blocks)
        pulled, pull_s = self._pull(placement, arrival, found)
        hit = min(found * BLOCK_SIZE, arrival.prompt_tokens)
        reached = min((found + pulled) * BLOCK_SIZE, arrival.prompt_tokens)
        started = max(self.now, worker.free_at_s)
        computed = started + pull_s + (arrival.prompt_tokens - reached) / PREFILL_TOKENS_S
        worker.free_at_s = computed
        done = computed + OVERHEAD_S
        self._note(worker, arrival, hit, reached - hit, done - self.now)
        self._tell(worker, worker.use(arrival.blocks, found))
        self._at(done, partial(router.first_token, name, hit, (done - self.now) * 1e3))
        self._at(done + arrival.output_tokens * TOKEN_S, partial(router.free, name))

    def _pull(self, placement: Placement, arrival: Arrival, found: int) -> tuple[int, float]:
        """Return blocks that come from another worker, and how long that takes."""
        source = placement.source
        if source is None:
            return 0, 0.0
        there = self._workers[source.target].cached(arrival.blocks)
        blocks = max(0, min(there, source.first + source.blocks) - found)
        return blocks, transfer_ms(_ANY, _ANY, blocks, self._routers[0].config.transfer) / 1e3

    def _note(self, worker: Worker, arrival: Arrival, hit: int, pulled: int, ttft_s: float) -> None:
        result = self.result
        result.prompt_tokens += arrival.prompt_tokens
        result.hit_tokens += hit
        result.pulled_tokens += pulled
        result.ttfts_s.append(ttft_s)
        result.per_worker[int(worker.name[1:])] += 1

    def _tell(self, worker: Worker, events: Sequence[KvEvent]) -> None:
        batch = EventBatch(worker.name, 1, next(self._seq), self.now, tuple(events))
        for router in self._routers:
            router.index.on_batch(batch)


def _spec(cache: CacheSpec) -> WorkerSpec:
    """All workers are in one rack: what one pulls from another comes at that rate."""
    return WorkerSpec(cache=cache, worker_class="simulated", rack="r", block_bytes=BLOCK_BYTES)


_ANY = _spec(CacheSpec(target="any", block_size=BLOCK_SIZE))


def read_trace(path: Path, speed: float = 1.0, limit: int | None = None) -> list[Arrival]:
    """Return the requests of a file in Mooncake's form."""
    with path.open() as lines:
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines][:limit]
    return [
        Arrival(
            row["timestamp"] / 1e3 / speed,
            row["input_length"],
            row["output_length"],
            tuple(blake2b(b"%d" % block, digest_size=16).digest() for block in row["hash_ids"]),
        )
        for row in rows
    ]


def spread(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Return them with those of one timestamp spread until the next: a trace rounds its times."""
    times = sorted({arrival.at_s for arrival in arrivals})
    gaps = dict(zip(times, map(sub, times[1:], times), strict=False))
    crowds = Counter(arrival.at_s for arrival in arrivals)
    seen: Counter[float] = Counter()
    moved = []
    for arrival in arrivals:
        at_s = arrival.at_s
        share = seen[at_s] / crowds[at_s]
        seen[at_s] += 1
        moved.append(replace(arrival, at_s=at_s + share * gaps.get(at_s, 0.0)))
    return moved


def synthetic_trace(num_prompts: int, speed: float = 1.0, seed: int = 0) -> list[Arrival]:
    """Return conversations like Mooncake's, for where that trace is not at hand."""
    rng = random.Random(seed)
    arrivals, now = [], 0.0
    for chain in replay.synthetic_trace(num_prompts, seed):
        now += rng.expovariate(3.4 * speed)
        last = rng.randrange(1, BLOCK_SIZE)  # the last block is not full
        tokens = (len(chain) - 1) * BLOCK_SIZE + last
        outputs = int(min(2_000, 1 + rng.lognormvariate(5.3, 1.0)))
        arrivals.append(Arrival(now, tokens, outputs, tuple(chain)))
    return arrivals


def pooled_percent(arrivals: Iterable[Arrival], capacity: int) -> float:
    """Return what one cache of the workers' whole size would find: no placement finds more."""
    pool = Worker("pool", capacity)
    hit = total = 0
    for arrival in arrivals:
        found = pool.cached(arrival.blocks)
        hit += min(found * BLOCK_SIZE, arrival.prompt_tokens)
        total += arrival.prompt_tokens
        pool.use(arrival.blocks, found)
    return 100 * hit / total
