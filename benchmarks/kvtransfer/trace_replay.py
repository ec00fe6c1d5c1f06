"""Replays a trace of prompts through the books of a tier: which prefix would have been found?"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import islice
from pathlib import Path

import numpy as np

from stafette.kvtransfer.blocks import HASH_BYTES, ROOT
from stafette.kvtransfer.tiers.cache import BlockCache, Entry

Trace = list[list[bytes]]  # of each prompt, in the order of arrival, its blocks' hashes

_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Replay:
    blocks: int
    hits: int

    @property
    def percent(self) -> float:
        return 100 * self.hits / self.blocks


def read_trace(path: Path, limit: int | None = None) -> Trace:
    """Return the prompts of a file in Mooncake's form: JSON lines with `hash_ids`."""
    with path.open() as lines:
        return [_chain(json.loads(line)["hash_ids"]) for line in islice(lines, limit)]


def synthetic_trace(num_prompts: int, seed: int = 0) -> Trace:
    """Return conversations like Mooncake's: one system prompt, turns that come back minutes later.

    A prompt is its conversation so far and some new blocks; the numbers were set so that, as in the
    original, a prompt has 25 blocks and a cache without end finds a third of them.
    """
    rng = np.random.default_rng(seed)
    waiting: list[tuple[float, int, list[int]]] = []  # (when, tie, what was said so far)
    prompts, next_block = [], 1
    for number in range(num_prompts):
        again = waiting and waiting[0][0] <= number
        said = heappop(waiting)[2] if again else [0]
        length = int(min(230, 1 + rng.lognormal(2.2, 1.1)))
        said = [*said, *range(next_block, next_block + length)]
        next_block += length
        prompts.append(said)
        if rng.random() < 0.36:
            heappush(waiting, (number + rng.lognormal(5.5, 1.5), number, said[:-1]))
    return [_chain(prompt) for prompt in prompts]


def replay(trace: Trace, cache: BlockCache) -> Replay:
    """Run every prompt through a tier that takes all blocks it computes."""
    hits = 0
    for prompt in trace:
        found = cache.num_cached(prompt)
        hits += found
        cache.touch(prompt[:found])
        _store(cache, prompt, found)
    return Replay(sum(map(len, trace)), hits)


def replay_without_end(trace: Trace) -> Replay:
    """Return what a cache finds that keeps everything."""
    hits, seen = 0, set[bytes]()
    for prompt in trace:
        hits += sum(key in seen for key in prompt)
        seen.update(prompt)
    return Replay(sum(map(len, trace)), hits)


def replay_clairvoyant(trace: Trace, capacity: int) -> Replay:
    """Return what is found when those stay that come back soonest: no policy can do better."""
    hits = 0
    kept: dict[bytes, int] = {}  # when it comes back
    order: list[tuple[int, int, bytes]] = []  # latest first, children before their parents
    for prompt, returns in zip(trace, _returns(trace), strict=True):
        hits += sum(key in kept for key in prompt)
        for depth, (key, when) in enumerate(zip(prompt, returns, strict=True)):
            kept.pop(key, None)
            if when != _NEVER:
                kept[key] = when
                heappush(order, (-when, -depth, key))
        while len(kept) > capacity:
            when, _, key = heappop(order)
            if kept.get(key) == -when:
                del kept[key]
    return Replay(sum(map(len, trace)), hits)


def _store(cache: BlockCache, prompt: Sequence[bytes], found: int) -> None:
    """Add what was missing; the prompt's own prefix must not make room for its end."""
    held = [cache.pin(key) for key in prompt[:found]]
    missing = [(key, prompt[i - 1] if i else ROOT) for i, key in enumerate(prompt) if i >= found]
    missing = [pair for pair in missing if pair[0] not in cache]  # there, but its parent was not
    slots, _ = cache.reserve(len(missing))
    pairs = zip(missing, slots, strict=False)
    cache.store([Entry(key, parent, slot) for (key, parent), slot in pairs])
    for entry in held:
        cache.unpin(entry)


def _returns(trace: Trace) -> list[list[int]]:
    """Return for each block of each prompt the number of the next prompt that has it."""
    upcoming: dict[bytes, int] = {}
    returns: list[list[int]] = []
    for number in range(len(trace) - 1, -1, -1):
        returns.append([upcoming.get(key, _NEVER) for key in trace[number]])
        upcoming.update(dict.fromkeys(trace[number], number))
    return returns[::-1]


def _chain(ids: Sequence[int]) -> list[bytes]:
    return [blake2b(b"%d" % block, digest_size=HASH_BYTES).digest() for block in ids]
