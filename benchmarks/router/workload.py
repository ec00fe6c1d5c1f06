"""What the contenders are asked: prompts whose first half all workers hold, the rest one."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

Chain = list[int]

_END = 1 << 64
PER_EVENT = 64  # blocks


@dataclass(frozen=True, slots=True)
class Stored:
    worker: int
    parent: int | None
    blocks: Chain


@dataclass(frozen=True, slots=True)
class Question:
    chain: Chain
    deepest: int  # what the best worker holds
    holders: int


@dataclass(frozen=True, slots=True)
class Population:
    """Half of the entries are common beginnings, held by all; the others are one worker's."""

    workers: int
    length: int
    beginnings: list[Chain]
    endings: list[tuple[int, int, Chain]]  # (beginning, worker, blocks)

    @property
    def entries(self) -> int:
        common = self.workers * sum(map(len, self.beginnings))
        return common + sum(len(blocks) for _, _, blocks in self.endings)

    def events(self) -> Iterator[Stored]:
        for blocks in self.beginnings:
            for worker in range(self.workers):
                yield from in_runs(worker, None, blocks)
        for beginning, worker, blocks in self.endings:
            yield from in_runs(worker, self.beginnings[beginning][-1], blocks)


def populate(workers: int, length: int, entries: int, seed: int = 7) -> Population:
    rng = random.Random(seed)
    half = max(1, length // 2)
    count = max(1, entries // 2 // (workers * half))
    beginnings = [chain(rng, half) for _ in range(count)]
    left = entries - workers * count * half
    endings = [
        (rng.randrange(count), rng.randrange(workers), chain(rng, length - half))
        for _ in range(max(1, left // (length - half)))
    ]
    return Population(workers, length, beginnings, endings)


def questions(population: Population, count: int, seed: int = 3) -> list[Question]:
    """Return prompts: half of them held whole by one worker, two in five only begun, others new."""
    rng = random.Random(seed)
    return [_question(population, rng) for _ in range(count)]


def in_runs(worker: int, parent: int | None, blocks: Chain, size: int = PER_EVENT) -> list[Stored]:
    starts = range(0, len(blocks), size)
    parents = [parent, *(blocks[start - 1] for start in starts if start)]
    return [
        Stored(worker, above, blocks[start : start + size])
        for start, above in zip(starts, parents, strict=True)
    ]


def chain(rng: random.Random, length: int) -> Chain:
    return [rng.randrange(1, _END) for _ in range(length)]


def _question(population: Population, rng: random.Random) -> Question:
    beginning, _, ending = rng.choice(population.endings)
    common = population.beginnings[beginning]
    kind = rng.random()
    if kind < 0.5:
        return Question([*common, *ending], population.length, population.workers)
    if kind < 0.9:
        return Question([*common, *chain(rng, len(ending))], len(common), population.workers)
    return Question(chain(rng, population.length), 0, 0)
