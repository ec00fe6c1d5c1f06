"""Measures one router in this process; every answer is checked before it counts."""

import gc
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.router.contenders.protocol import IndexContender, PlacementContender
from benchmarks.router.workload import Question, chain, in_runs, populate, questions

_WARM_UP = 50
_SETTLED = 1_200  # decisions: what a router keeps of the latest ones is full by then
_CHAIN = 512  # blocks of a sequence whose events are applied
_BLOCK_SIZE = 16
_VOCABULARY = 128_000


class WrongAnswer(Exception):
    """A router that is fast because it is wrong is not measured."""


def look_up(module: Any, workers: int, length: int, entries: int, count: int) -> dict[str, float]:
    """Return microseconds for an answer, with the result for each worker and without."""
    index: IndexContender = module.Index(workers)
    population = populate(workers, length, entries)
    _apply_all(index, population.events())
    asked = [(index.query(one.chain), one) for one in questions(population, count)]
    gc.collect()
    for query, question in asked[:_WARM_UP]:
        _check(index, index.match(query), question)
    match_s = _times(index.match, [query for query, _ in asked])
    raw_s = _times(index.look_up, [query for query, _ in asked])
    for query, question in asked:
        _check(index, index.match(query), question)
    return {
        "match_us": _percentile(match_s, 50) * 1e6,
        "match_p99_us": _percentile(match_s, 99) * 1e6,
        "raw_us": _percentile(raw_s, 50) * 1e6,
        "raw_p99_us": _percentile(raw_s, 99) * 1e6,
    }


def apply(module: Any, workers: int, per_event: int, blocks: int) -> dict[str, float]:
    """Return events a second: made and applied, made before, and removals."""
    index: IndexContender = module.Index(workers)
    rng = random.Random(per_event)
    lists = [
        [
            (one.worker, one.parent, index.hashes(one.blocks))
            for number in range(blocks // _CHAIN)
            for one in in_runs(number % workers, None, chain(rng, _CHAIN), per_event)
        ]
        for _ in range(2)
    ]
    count = len(lists[0])
    made = [index.encode_stored(*event) for event in lists[0]]
    applied_s = _duration(index, lambda: _each(index.apply, made))
    full_s = _duration(index, lambda: _make_and_apply(index, lists[1]))
    gone = [index.encode_removed(worker, hashes) for worker, _, hashes in reversed(lists[0])]
    removed_s = _duration(index, lambda: _each(index.apply, gone))
    return {
        "full_per_s": count / full_s,
        "applied_per_s": count / applied_s,
        "removed_per_s": count / removed_s,
    }


def memory(module: Any, workers: int, blocks: int, owners: int) -> dict[str, float]:
    """Return bytes for a block, and for each further worker that holds it."""
    index: IndexContender = module.Index(workers)
    rng = random.Random(0)
    chains = [chain(rng, _CHAIN) for _ in range(blocks // _CHAIN)]
    sizes = [_resident_bytes()]
    for shift in range(owners):
        for number, blocks_of_one in enumerate(chains):
            _apply_all(index, in_runs((number + shift) % workers, None, blocks_of_one))
        index.flush()
        gc.collect()
        sizes.append(_resident_bytes())
    count = len(chains) * _CHAIN
    return {
        "block_bytes": (sizes[1] - sizes[0]) / count,
        "owner_bytes": (sizes[-1] - sizes[1]) / (count * (owners - 1)),
    }


def place(module: Any, workers: int, tokens: int, entries: int, count: int) -> dict[str, float]:
    """Return microseconds from a list of token ids to the worker that holds the prompt."""
    router: PlacementContender = module.Placement()
    router.start(workers, _BLOCK_SIZE)
    try:
        prompts = _populate_tokens(router, workers, tokens, entries)
        rng = random.Random(5)
        asked = [prompts[rng.randrange(len(prompts))] for _ in range(count)]
        first = (asked[number % count][0] for number in range(_SETTLED))
        router.place(list(first))
        placed = router.place([prompt for prompt, _ in asked])
        pairs = zip(placed, asked, strict=True)
        right = sum(worker == holder for (worker, _), (_, holder) in pairs)
        if right < count:
            raise WrongAnswer(f"{right} of {count} prompts went where they are held")
        taken_s = [seconds for _, seconds in placed]
    finally:
        router.close()
    return {
        "place_us": _percentile(taken_s, 50) * 1e6,
        "place_p99_us": _percentile(taken_s, 99) * 1e6,
    }


def _populate_tokens(
    router: PlacementContender, workers: int, tokens: int, entries: int
) -> list[tuple[list[int], int]]:
    """Store prompts with a common first half; return those, each with the worker that holds it."""
    rng = random.Random(11)
    half = tokens // 2
    common = [rng.randrange(_VOCABULARY) for _ in range(half)]
    for worker in range(workers):
        router.stored(worker, [], common)
    prompts = []
    for number in range(max(workers, entries * _BLOCK_SIZE // tokens)):
        own = [rng.randrange(_VOCABULARY) for _ in range(tokens - half)]
        router.stored(number % workers, common, own)
        prompts.append((common + own, number % workers))
    router.settle()
    return prompts


def _apply_all(index: IndexContender, events: Iterable[Any]) -> None:
    for one in events:
        index.apply(index.encode_stored(one.worker, one.parent, index.hashes(one.blocks)))
    index.flush()


def _make_and_apply(index: IndexContender, events: Sequence[tuple[int, int | None, Any]]) -> None:
    for event in events:
        index.apply(index.encode_stored(*event))


def _each(function: Callable[[Any], object], values: Sequence[Any]) -> None:
    for value in values:
        function(value)


def _duration(index: IndexContender, work: Callable[[], None]) -> float:
    gc.collect()
    index.flush()
    started = time.perf_counter()
    work()
    index.flush()
    return time.perf_counter() - started


def _times(function: Callable[[Any], object], values: Sequence[Any]) -> list[float]:
    now = time.perf_counter
    times = []
    for value in values:
        started = now()
        function(value)
        times.append(now() - started)
    return times


def _check(index: IndexContender, found: dict[Any, Any], question: Question) -> None:
    deepest = max(map(index.depth, found.values()), default=0)
    if (deepest, len(found)) != (question.deepest, question.holders):
        raise WrongAnswer(f"{deepest} blocks, {len(found)} workers; it is {question.deepest}")


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, percent * len(ordered) // 100)]


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
