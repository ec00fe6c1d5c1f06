"""Knows which KV blocks live where: fed by the workers' events, asked by prompts.

A target is one cache: a worker, or one data-parallel rank of it, by its name. The events' order,
gaps and repeats are the event stream's business; here duplicates, missing parents and holes change
nothing, because a block's hash stands for its whole prefix.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

from stafette.kvtransfer.blocks import HASH_BYTES
from stafette.kvtransfer.events import (
    AllCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    KvEvent,
)
from stafette.router.errors import IncompatibleCache, InvalidValue, UnknownTarget
from stafette.router.guesses import GuessConfig, Guesses
from stafette.router.hashing import Hashers
from stafette.router.native import table as native
from stafette.router.table import (
    MIN_WIDTH,
    Answer,
    BlockTable,
    Group,
    PlainTable,
    TableStats,
)
from stafette.router.translation import ForeignHashes

logger = logging.getLogger(__name__)

_MOST_ENTRIES = 1 << 31  # records are numbered with 32 bits
_new = tuple.__new__  # the fast way to make a named tuple
_PIECE = 4_096  # blocks of one event that are applied before others may look something up


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    max_entries: int = 20_000_000  # pairs of a block and a target; some 40-80 bytes each
    predicted: GuessConfig = GuessConfig(ttl_s=5.0, generations=3)  # until events tell it
    approximate: GuessConfig = GuessConfig(ttl_s=120.0)  # for targets without events
    max_guesses: int = 4_000_000  # pairs, of each kind of guess
    native: bool = True  # where it was built

    def __post_init__(self) -> None:
        for name in ("max_entries", "max_guesses"):
            if not 1 <= getattr(self, name) <= _MOST_ENTRIES:
                remedy = f"must be in 1..{_MOST_ENTRIES}"
                raise InvalidValue(f"index.{name}", getattr(self, name), remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """What a target says of its cache when it registers."""

    target: str
    block_size: int
    model: str = ""
    fingerprint: bytes | None = None  # of its hasher; None: other hashes, its events have tokens
    events: bool = True  # False: what it holds is guessed from what is sent there
    source: str = ""  # its name in the event stream, if that is another
    capacity_blocks: int | None = None


class Overlap(NamedTuple):
    """How many blocks of a prompt's beginning a target holds, by the tier that they come from."""

    device: int = 0
    host: int = 0  # behind those on the device
    disk: int = 0  # behind those
    peer: int = 0

    @property
    def total(self) -> int:
        return self.device + self.host + self.disk + self.peer


NOTHING = Overlap()


@dataclass(frozen=True, slots=True)
class Names:
    """The targets' names at one time: by slot, some of them free by now, and those in use."""

    by_slot: tuple[str, ...] = ()
    used: dict[str, None] = field(default_factory=dict)


class Match:
    """Who holds how much of one prompt's beginning."""

    __slots__ = ("_answer", "_guessed", "_names", "num_blocks")

    def __init__(
        self, num_blocks: int, names: Names, answer: Answer, guessed: Sequence[Group]
    ) -> None:
        self.num_blocks = num_blocks
        self._names = names
        self._answer = answer
        self._guessed = guessed

    @property
    def names(self) -> Sequence[str]:
        """The targets' names by slot, some of them of targets that left."""
        return self._names.by_slot

    def parts(self) -> Iterator[tuple[Sequence[int], Overlap]]:
        """Return groups of slots, and what these hold; of several the most counts."""
        words, parts = self._answer.parts()
        for start, end, depths in parts:
            yield words[start:end], _by_tier(depths)
        for slots, reached in self._guessed:
            yield slots, Overlap(reached[0])

    def overlaps(self) -> dict[str, Overlap]:
        """Return the overlap of every target that has some."""
        words, parts = self._answer.parts()
        name_of = self._names.by_slot.__getitem__
        found: dict[str, Overlap] = {}
        if parts and len(words) - parts[0][0] == len(self._names.used):
            # Everybody holds some, most of them equally much: a common beginning.
            most = max(parts, key=_size)
            parts.remove(most)
            found = dict.fromkeys(self._names.used, _by_tier(most[2]))
        for start, end, depths in parts:
            found.update(dict.fromkeys(map(name_of, words[start:end]), _by_tier(depths)))
        for slots, reached in self._guessed:
            guess = Overlap(reached[0])
            for name in map(name_of, slots):
                if found.get(name, NOTHING).total < guess.total:
                    found[name] = guess
        return found


def _size(part: tuple[int, int, Sequence[int]]) -> int:
    return part[1] - part[0]


def _by_tier(depths: Sequence[int]) -> Overlap:
    device, host, disk, peer = depths
    return _new(Overlap, (device, host - device, disk - host, peer - disk))


@dataclass(slots=True)
class IndexCounters:
    batches: int = 0
    events: int = 0
    stored_blocks: int = 0  # that were new to the target
    removed_blocks: int = 0
    forgotten_blocks: int = 0  # with their target, or its old life
    unknown_source: int = 0  # batches of targets that are not registered
    stale_epoch: int = 0  # batches of an older life
    malformed: int = 0  # events whose hashes cannot be used
    foreign_block_size: int = 0  # events with another block size than was registered
    unknown_parent: int = 0  # events of foreign hashes whose beginning was never told


@dataclass(slots=True)
class _Target:
    spec: CacheSpec
    slot: int
    epoch: int | None = None
    foreign: ForeignHashes | None = None
    warned: set[str] = field(default_factory=set)


class KvIndex:
    """Any thread may call it. As the event stream's handler it takes its batches."""

    def __init__(
        self,
        hashers: Hashers,
        config: IndexConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        config = config or IndexConfig()
        self.config = config
        self.counters = IndexCounters()
        self._hashers = hashers
        self._clock = clock
        self._lock = Lock()
        self._table = _make_table(config, config.max_entries)
        self._guessed = [_make_table(config, config.max_guesses) for _ in range(2)]
        self._predicted = Guesses(self._guessed[0], config.predicted)
        self._approximate = Guesses(self._guessed[1], config.approximate)
        self._targets: dict[str, _Target] = {}
        self._sources: dict[str, _Target] = {}
        self._names = Names()
        self._free_slots: list[int] = []

    @property
    def block_size(self) -> int:
        return self._hashers.block_size

    @property
    def targets(self) -> list[str]:
        return list(self._targets)

    def register(self, spec: CacheSpec) -> None:
        """Admit a target; IncompatibleCache where its blocks could never be found.

        One of the same name is replaced, and what it held is forgotten.
        """
        self._check(spec)
        with self._lock:
            self._drop(spec.target)
            slot = self._free_slots.pop() if self._free_slots else len(self._names.by_slot)
            self._name(slot, spec.target)
            target = _Target(spec, slot)
            if spec.events and spec.fingerprint is None:
                target.foreign = ForeignHashes(self._hashers.of(spec.model))
            guesses = self._predicted if spec.events else self._approximate
            guesses.add_place(slot, spec.capacity_blocks)
            self._targets[spec.target] = target
            self._sources[spec.source or spec.target] = target

    def unregister(self, name: str) -> int:
        """Forget a target in the time that its blocks take; return how many it held."""
        with self._lock:
            if name not in self._targets:
                raise UnknownTarget(name)
            return self._drop(name)

    def match(self, chain: bytes, width: int = HASH_BYTES) -> Match:
        """Return who holds how much of a chain of hashes, `width` bytes each."""
        with self._lock:
            answer = self._table.match(chain, width)
            guessed = self._guess(chain, width) if self._predicted or self._approximate else ()
            return Match(len(chain) // width, self._names, answer, guessed)

    def predict(self, name: str, chain: bytes) -> None:
        """A request with this chain was sent there: it will hold it soon."""
        with self._lock:
            target = self._targets.get(name)
            if target is None:
                raise UnknownTarget(name)
            guesses = self._predicted if target.spec.events else self._approximate
            guesses.remember(target.slot, chain, HASH_BYTES, self._clock())

    def on_batch(self, batch: EventBatch) -> None:
        """Apply what a target tells of its cache."""
        with self._lock:
            target = self._sources.get(batch.worker_id)
            if target is None:
                self.counters.unknown_source += 1
                return
            if target.epoch is not None and batch.epoch < target.epoch:
                self.counters.stale_epoch += 1
                return
            if batch.snapshot or target.epoch not in (None, batch.epoch):
                self._forget(target)
            target.epoch = batch.epoch
            self.counters.batches += 1
        for event in batch.events:
            self._apply(target, event)

    def on_reset(self, worker_id: str) -> None:
        self._forget_source(worker_id)

    def on_lost(self, worker_id: str) -> None:
        self._forget_source(worker_id)

    def held(self, name: str) -> int:
        """Return how many blocks a target holds, as its events tell."""
        with self._lock:
            target = self._targets.get(name)
            if target is None:
                raise UnknownTarget(name)
            return self._table.held(target.slot)

    def stats(self) -> TableStats:
        with self._lock:
            return self._table.stats()

    def close(self) -> None:
        """Give the memory back; what is told or asked after that finds an empty index."""
        with self._lock:
            for table in (self._table, *self._guessed):
                table.close()

    def _guess(self, chain: bytes, width: int) -> list[Group]:
        now = self._clock()
        return [
            group
            for guesses in (self._predicted, self._approximate)
            for group in guesses.match(chain, width, now)
        ]

    def _check(self, spec: CacheSpec) -> None:
        ours = self._hashers
        if spec.block_size != ours.block_size:
            raise IncompatibleCache(spec.target, "block_size", ours.block_size, spec.block_size)
        if spec.fingerprint is None:
            return
        expected = ours.of(spec.model).fingerprint
        if spec.fingerprint != expected:
            raise IncompatibleCache(
                spec.target, "hash fingerprint", expected.hex(), spec.fingerprint.hex()
            )

    def _apply(self, target: _Target, event: KvEvent) -> None:
        self.counters.events += 1
        match event:
            case BlockStored():
                self._store(target, event)
            case BlockRemoved():
                self._remove(target, event)
            case AllCleared():
                with self._lock:
                    self._forget(target)

    def _store(self, target: _Target, event: BlockStored) -> None:
        if event.block_size not in (0, self.block_size):
            self.counters.foreign_block_size += 1
            self._warn(target, f"block size {event.block_size}, registered {self.block_size}")
            return
        hashes = event.hashes if target.foreign is None else target.foreign.store(event)
        if hashes is None:
            self.counters.unknown_parent += 1
            return
        for chain, width in self._pieces(hashes):
            with self._lock:
                if self._is_current(target):
                    stored = self._table.store(target.slot, event.tier, chain, width)
                    self.counters.stored_blocks += stored

    def _remove(self, target: _Target, event: BlockRemoved) -> None:
        hashes = event.hashes if target.foreign is None else target.foreign.remove(event)
        for chain, width in self._pieces(hashes):
            with self._lock:
                if self._is_current(target):
                    removed = self._table.remove(target.slot, event.tier, chain, width)
                    self.counters.removed_blocks += removed

    def _pieces(self, hashes: Sequence[bytes]) -> list[tuple[bytes, int]]:
        """Return the hashes as runs of bytes, and the width of one."""
        width = len(hashes[0]) if hashes else HASH_BYTES
        joined = b"".join(hashes)
        if width < MIN_WIDTH or len(joined) != width * len(hashes):
            self.counters.malformed += 1
            return []
        step = _PIECE * width
        return [(joined[at : at + step], width) for at in range(0, len(joined), step)]

    def _is_current(self, target: _Target) -> bool:
        """Its slot may be another's by now."""
        return self._targets.get(target.spec.target) is target

    def _forget_source(self, source: str) -> None:
        with self._lock:
            target = self._sources.get(source)
            if target is not None:
                self._forget(target)
                target.epoch = None

    def _forget(self, target: _Target) -> int:
        count = self._table.forget(target.slot)
        self.counters.forgotten_blocks += count
        self._predicted.forget(target.slot)
        if target.foreign is not None:
            target.foreign.clear()
        return count

    def _drop(self, name: str) -> int:
        target = self._targets.pop(name, None)
        if target is None:
            return 0
        count = self._forget(target)
        for guesses in (self._predicted, self._approximate):
            guesses.remove_place(target.slot)
        del self._sources[target.spec.source or name]
        self._free_slots.append(target.slot)
        self._names = Names(self._names.by_slot, dict.fromkeys(self._targets))
        return count

    def _name(self, slot: int, name: str) -> None:
        """Names change as a whole: answers that were given keep those of their time."""
        before = self._names.by_slot
        by_slot = (*before[:slot], name, *before[slot + 1 :])
        self._names = Names(by_slot, self._names.used | {name: None})

    def _warn(self, target: _Target, problem: str) -> None:
        if problem not in target.warned:
            target.warned.add(problem)
            logger.warning("events of %s cannot be used: %s", target.spec.target, problem)


def _make_table(config: IndexConfig, max_entries: int) -> BlockTable:
    made = native.make_table(max_entries) if config.native else None
    return made or PlainTable(max_entries)
