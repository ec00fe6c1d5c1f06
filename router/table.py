"""Which slot holds which blocks: the contract, and the table in plain Python.

A slot is a number that stands for one worker's cache. A block is known by the first 8 bytes of its
hash, and a chain of blocks is one run of bytes, `width` for each hash.
"""

from abc import ABC, abstractmethod
from array import array
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, get_args

from stafette.kvtransfer.events import Tier

TIERS: tuple[Tier, ...] = get_args(Tier)  # the fastest first
ALL_TIERS = (1 << len(TIERS)) - 1
GROUP_WORDS = 1 + len(TIERS)
MIN_WIDTH = 8
_KEY_BYTES = 8


class Group(NamedTuple):
    """Slots that hold equally much of a chain's beginning."""

    slots: list[int]
    depths: tuple[int, ...]  # blocks, in a row, on the first tier; on the first two; ...


class Answer:
    """Who holds how much of a chain's beginning; who holds nothing is left out.

    It is read when it is needed: u32 words that tell the number of groups; of each group how many
    slots it has, and its depths; all slots.
    """

    __slots__ = ("_words",)

    def __init__(self, words: bytes) -> None:
        self._words = words

    def parts(self) -> tuple[memoryview, list[tuple[int, int, list[int]]]]:
        """Return all words, and of each group where its slots begin and end, and its depths."""
        words = memoryview(self._words).cast("I")
        start = 1 + words[0] * GROUP_WORDS
        parts = []
        heads = words[1:start].tolist()
        for at in range(0, start - 1, GROUP_WORDS):
            end = start + heads[at]
            parts.append((start, end, heads[at + 1 : at + GROUP_WORDS]))
            start = end
        return words, parts

    def groups(self) -> list[Group]:
        """Return the groups; a slot is in one of them."""
        words, parts = self.parts()
        return [Group(words[start:end].tolist(), tuple(depths)) for start, end, depths in parts]


@dataclass(frozen=True, slots=True)
class TableStats:
    blocks: int  # that somebody holds
    entries: int  # pairs of a block and a slot that holds it
    evicted: int  # entries, so far
    bytes: int  # 0: not known


class BlockTable(ABC):
    """Above `max_entries` the blocks matched or stored longest ago go first, for all slots."""

    @abstractmethod
    def store(self, slot: int, tier: Tier, hashes: bytes, width: int) -> int:
        """The slot holds these blocks on this tier; return how many it did not hold at all."""

    @abstractmethod
    def remove(self, slot: int, tier: Tier | None, hashes: bytes, width: int) -> int:
        """Return how many of the blocks the slot no longer holds; None stands for every tier."""

    @abstractmethod
    def forget(self, slot: int) -> int:
        """Forget all that the slot holds, in the time that takes, and return how much it was."""

    @abstractmethod
    def match(self, hashes: bytes, width: int) -> Answer:
        """Return who holds how much of the chain's beginning."""

    @abstractmethod
    def held(self, slot: int) -> int:
        """Return how many blocks the slot holds."""

    @abstractmethod
    def stats(self) -> TableStats: ...

    @abstractmethod
    def close(self) -> None:
        """Give the memory back. Safe to call twice."""


def tier_bit(tier: Tier | None) -> int:
    return ALL_TIERS if tier is None else 1 << TIERS.index(tier)


@cache
def levels_of(tiers: int) -> int:
    """Return the levels, as bits, on which a block counts that is on these tiers."""
    return ALL_TIERS & ~((tiers & -tiers) - 1)


class PlainTable(BlockTable):
    """For where the native table was not built: the same answers, more slowly, in more memory."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._holders: dict[bytes, dict[int, int]] = {}  # block -> slot -> tiers; last used last
        self._blocks: defaultdict[int, set[bytes]] = defaultdict(set)  # of a slot
        self._entries = 0
        self._evicted = 0

    def store(self, slot: int, tier: Tier, hashes: bytes, width: int) -> int:
        bit, fresh = tier_bit(tier), 0
        keys = _keys(hashes, width)
        for key in keys:
            holders = self._holders.setdefault(key, {})
            fresh += slot not in holders
            holders[slot] = holders.get(slot, 0) | bit
        self._blocks[slot].update(keys)
        self._entries += fresh
        self._use(keys)
        self._evict()
        return fresh

    def remove(self, slot: int, tier: Tier | None, hashes: bytes, width: int) -> int:
        kept, gone = ~tier_bit(tier), 0
        for key in _keys(hashes, width):
            holders = self._holders.get(key, {})
            if slot not in holders:
                continue
            holders[slot] &= kept
            if not holders[slot]:
                self._let_go(key, slot)
                self._blocks[slot].discard(key)
                gone += 1
        return gone

    def forget(self, slot: int) -> int:
        blocks = self._blocks.pop(slot, set())
        for key in blocks:
            self._let_go(key, slot)
        return len(blocks)

    def match(self, hashes: bytes, width: int) -> Answer:
        alive: dict[int, int] | None = None  # slot -> levels on which its chain is whole
        depths: dict[int, list[int]] = {}
        keys = _keys(hashes, width)
        used = 0
        for depth, key in enumerate(keys):
            holders = self._holders.get(key, {})
            if alive is None:
                alive = {slot: ALL_TIERS for slot in holders}
                depths = {slot: [0] * len(TIERS) for slot in holders}
            alive = _narrowed(alive, holders, depths, depth)
            if not alive:
                break
            used = depth + 1
        for slot, levels in (alive or {}).items():
            _end(depths[slot], levels, used)
        self._use(keys[:used])
        return _answer(depths)

    def held(self, slot: int) -> int:
        return len(self._blocks.get(slot, ()))

    def stats(self) -> TableStats:
        return TableStats(len(self._holders), self._entries, self._evicted, 0)

    def close(self) -> None:
        self._holders.clear()
        self._blocks.clear()

    def _use(self, keys: list[bytes]) -> None:
        """The chain's beginning was used last: its end goes first."""
        for key in reversed(keys):
            self._holders[key] = self._holders.pop(key)

    def _evict(self) -> None:
        while self._entries > self._max_entries:
            key = next(iter(self._holders))
            holders = self._holders.pop(key)
            for slot in holders:
                self._blocks[slot].discard(key)
            self._entries -= len(holders)
            self._evicted += len(holders)

    def _let_go(self, key: bytes, slot: int) -> None:
        holders = self._holders[key]
        del holders[slot]
        self._entries -= 1
        if not holders:
            del self._holders[key]


def _keys(hashes: bytes, width: int) -> list[bytes]:
    return [hashes[at : at + _KEY_BYTES] for at in range(0, len(hashes), width)]


def _narrowed(
    alive: dict[int, int], holders: dict[int, int], depths: dict[int, list[int]], depth: int
) -> dict[int, int]:
    """Return who goes on, and note for those who do not how far they came."""
    kept = {}
    for slot, levels in alive.items():
        still = levels & levels_of(holders[slot]) if slot in holders else 0
        _end(depths[slot], levels & ~still, depth)
        if still:
            kept[slot] = still
    return kept


def _end(depths: list[int], levels: int, depth: int) -> None:
    for level in range(len(TIERS)):
        if levels >> level & 1:
            depths[level] = depth


def _answer(depths: dict[int, list[int]]) -> Answer:
    groups: dict[tuple[int, ...], list[int]] = {}
    for slot, reached in depths.items():
        groups.setdefault(tuple(reached), []).append(slot)
    heads = [word for reached, slots in groups.items() for word in (len(slots), *reached)]
    named = [slot for slots in groups.values() for slot in slots]
    return Answer(array("I", [len(groups), *heads, *named]).tobytes())
