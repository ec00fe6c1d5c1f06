"""Copies of sequences that decode are what the pool holds, whoever comes, stays, waits and goes."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.workers.attention.backend import AttentionMetadata, AttentionShape
from stafette.workers.attention.reference import ReferenceAttention
from stafette.workers.attention.torch_attention import TorchAttention
from stafette.workers.attention.torch_copies import Decoding, Places, num_places

SIZE, KV_HEADS, HEADS, DIM, BLOCKS, LAYERS = 4, 2, 4, 8, 256, 2
LONGEST = 40


class Fleet:
    """Sequences with random K and V in a pool, of which each step lets some go on by a token."""

    def __init__(self, seed: int, window: int | None = None) -> None:
        shape = AttentionShape(HEADS, KV_HEADS, DIM, SIZE, DIM**-0.5, window)
        self.random = random.Random(seed)
        self.values = torch.Generator().manual_seed(seed)
        self.pool = self._drawn(BLOCKS, LAYERS, 2, KV_HEADS, SIZE, DIM)
        self.backend, self.reference = TorchAttention(shape), ReferenceAttention(shape)
        self.free = list(range(BLOCKS))
        self.random.shuffle(self.free)
        self.blocks: dict[int, list[int]] = {}
        self.contexts: dict[int, int] = {}

    def _drawn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.values)

    def come(self, sequence: int, context: int) -> None:
        self.contexts[sequence] = context
        self.blocks[sequence] = [self.free.pop() for _ in range(-(-LONGEST // SIZE))]

    def go(self, sequence: int) -> None:
        del self.contexts[sequence]
        self.free.extend(self.blocks.pop(sequence))

    def move(self, sequence: int) -> None:
        """Compute it anew, elsewhere: other blocks, and (here) other values."""
        context = self.contexts[sequence]
        self.go(sequence)
        self.random.shuffle(self.free)
        self.come(sequence, context)
        self.pool[self.blocks[sequence]] = self._drawn(
            len(self.blocks[sequence]), LAYERS, 2, KV_HEADS, SIZE, DIM
        )

    def step(self, sequences: list[int], new: dict[int, int] | None = None) -> None:
        """Let these go on by a token, or by `new` ones, and look whether that is done right."""
        counts = [(new or {}).get(each, 1) for each in sequences]
        for each, count in zip(sequences, counts, strict=True):
            self.contexts[each] += count
        meta = self._metadata(sequences, counts)
        tokens = sum(counts)
        for layer in range(LAYERS):
            layer_kv = self.pool[:, layer]
            q, k, v = (self._drawn(tokens, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))
            self.backend.write(k, v, layer_kv, meta)
            out = self.backend.attend(q, layer_kv, meta)
            right = self.reference.attend(q, layer_kv, self._metadata(sequences, counts))
            torch.testing.assert_close(out, right)

    def _metadata(self, sequences: list[int], counts: list[int]) -> AttentionMetadata:
        contexts = [self.contexts[each] for each in sequences]
        slots = [
            self.blocks[each][position // SIZE] * SIZE + position % SIZE
            for each, count in zip(sequences, counts, strict=True)
            for position in range(self.contexts[each] - count, self.contexts[each])
        ]
        return AttentionMetadata(
            query_starts=torch.tensor(np.cumsum([0, *counts]), dtype=torch.int32),
            context_lens=torch.tensor(contexts, dtype=torch.int32),
            block_tables=torch.tensor([self.blocks[each] for each in sequences], dtype=torch.int32),
            slots=torch.tensor(slots),
            max_query_len=max(counts),
            max_context_len=max(contexts),
            sequences=tuple(sequences),
        )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), window=st.sampled_from([None, None, 5]))
def test_attention_is_right_whoever_comes_waits_moves_and_goes(seed, window):
    fleet, chance = Fleet(seed, window), random.Random(seed)
    numbers = iter(range(1_000))
    for _ in range(12):
        for sequence in list(fleet.contexts):
            if fleet.contexts[sequence] >= LONGEST - 3 or chance.random() < 0.05:
                fleet.go(sequence)
            elif chance.random() < 0.05:
                fleet.move(sequence)
        while len(fleet.contexts) < chance.randrange(1, 12):
            fleet.come(next(numbers), chance.randrange(1, 20))
        there = [each for each in fleet.contexts if chance.random() < 0.9] or list(fleet.contexts)
        if chance.random() < 0.2:
            chance.shuffle(there)
        several = {each: chance.randrange(1, 4) for each in there if chance.random() < 0.1}
        fleet.step(there, several)


def test_a_step_reads_each_block_once_and_then_only_what_is_new(monkeypatch):
    fleet = Fleet(1)
    for sequence in range(3):
        fleet.come(sequence, 9)
    fleet.step([0, 1, 2])
    held = [fleet.blocks[sequence] for sequence in range(3)]
    old = fleet.pool[held[0][0]].clone()

    fleet.pool[held[0][0]] = torch.nan  # nobody looks there again
    layer_kv, q = fleet.pool[:, 0], torch.ones(3, HEADS, DIM)
    for sequence in range(3):
        fleet.contexts[sequence] += 1
    out = fleet.backend.attend(q, layer_kv, fleet._metadata([0, 1, 2], [1, 1, 1]))
    assert torch.isfinite(out).all()

    fleet.pool[held[0][0]] = old
    fleet.backend.attend(q, layer_kv, fleet._metadata([1, 2], [1, 1]))  # 0 waits a step
    fleet.pool[held[0][0]] = torch.nan
    fleet.contexts[0] += 1
    out = fleet.backend.attend(q[:1], layer_kv, fleet._metadata([0], [1]))
    assert torch.isnan(out).all()  # it was gathered anew


@pytest.mark.parametrize("longest", [24, 40])
def test_copies_take_no_more_than_a_part_of_the_pool(longest):
    fleet = Fleet(2)
    for sequence in range(len(fleet.free) // (LONGEST // SIZE)):
        fleet.come(sequence, longest - 1)
        sequences = list(fleet.contexts)
        fleet.step(sequences)
        held = sum(copies.num_bytes for copies in fleet.backend._copies.values())
        fits = num_places(len(sequences)) * longest // SIZE <= BLOCKS // 4
        assert (held > 0) == fits
        assert held <= fleet.pool.nbytes / 4
        for each in sequences:
            fleet.contexts[each] -= 1


def decoding(*sequences: int, context: int = 4, blocks: tuple[int, ...] = (1,)) -> list[Decoding]:
    return [Decoding(each, context, [each * 10 + block for block in blocks]) for each in sequences]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_place_stays_whatever_the_order(order):
    places = Places()
    assert places.arrange(decoding(7, 8, 9)) == ([0, 1, 2], [0, 1, 2])

    longer = decoding(7, 8, 9, context=5, blocks=(1, 2))
    assert places.arrange([longer[place] for place in order]) == (list(order), [])


def test_who_comes_takes_the_place_of_who_went():
    places = Places()
    places.arrange(decoding(1, 2, 3))

    assert places.arrange(decoding(1, 3, 5, context=5)) == ([0, 2, 1], [2])


def test_holes_are_closed_when_they_are_most():
    places = Places()
    places.arrange(decoding(*range(8)))

    assert places.arrange(decoding(6, 7, context=5)) == ([0, 1], [0, 1])


@pytest.mark.parametrize(
    "after",
    [
        decoding(1, context=6),  # a step went by
        decoding(1, context=4),  # the same step again
        decoding(1, context=5, blocks=(2,)),  # computed anew, elsewhere
        decoding(2, context=5),
    ],
)
def test_who_is_not_the_same_one_token_longer_begins_anew(after):
    places = Places()
    places.arrange(decoding(1))

    assert places.arrange(after) == ([0], [0])


def test_scratch_is_nobody_the_next_time():
    places = Places()
    places.arrange(decoding(-1))

    assert places.arrange(decoding(-1, context=5)) == ([0], [0])
