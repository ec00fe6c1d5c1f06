"""Extents: byte ranges of one region, thousands of them in two arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import numpy as np
import numpy.typing as npt

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.kvtransfer.strict import text

Uint64s = npt.NDArray[np.uint64]

MAX_NAME_BYTES = 64  # of a region
MAX_EXTENTS = 1 << 20  # of one transfer: 16 MiB of numbers
_WORD = np.dtype("<u8")


@dataclass(frozen=True, slots=True, eq=False)
class Extents:
    """Ranges in the order in which they are copied. The i-th here pairs with the i-th there."""

    region: str
    offsets: Uint64s
    lengths: Uint64s

    @classmethod
    def of(cls, region: str, ranges: Sequence[tuple[int, int]]) -> "Extents":
        """Return the given (offset, length) pairs."""
        try:
            whole = [(index(offset), index(length)) for offset, length in ranges]
            table = np.array(whole, dtype=np.uint64).reshape(len(ranges), 2)
        except (OverflowError, TypeError, ValueError) as error:
            remedy = "must be pairs (offset, length) of whole numbers from 0 on"
            raise InvalidValue("ranges", str(error), remedy) from None
        return cls(region, table[:, 0].copy(), table[:, 1].copy())

    @classmethod
    def of_blocks(
        cls, region: str, blocks: Sequence[int] | npt.NDArray[np.integer], block_bytes: int
    ) -> "Extents":
        """Return whole blocks."""
        numbers = np.asarray(blocks, dtype=np.int64)
        least = numbers.item() if numbers.size == 1 else int(numbers.min(initial=0))
        if least < 0:
            raise InvalidValue("blocks", least, "block numbers begin at 0")
        if numbers.size == 1 and least * block_bytes < 1 << 63:
            return cls.of_one(region, least * block_bytes, block_bytes)
        offsets = numbers.astype(np.uint64) * np.uint64(block_bytes)
        return cls(region, offsets, np.full(len(numbers), block_bytes, np.uint64))

    @classmethod
    def of_one(cls, region: str, offset: int, length: int) -> "Extents":
        """Return a single range: a small transfer is mostly such steps, so it is made in one."""
        table = np.array((offset, length), np.uint64)
        return cls(region, table[:1], table[1:])

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def one(self) -> tuple[int, int] | None:
        """The offset and the length, where there is just one range."""
        return (self.offsets.item(), self.lengths.item()) if self.offsets.size == 1 else None

    @property
    def total_bytes(self) -> int:
        return int(self.lengths.item() if self.lengths.size == 1 else self.lengths.sum())

    def within(self, nbytes: int) -> bool:
        """Whether every range lies in a region of that many bytes; no sum overflows here."""
        if self.offsets.size == 1:  # Python's sums do not overflow
            return bool(self.offsets.item() + self.lengths.item() <= nbytes)
        size = np.uint64(nbytes)
        return bool((self.lengths <= size).all() and (self.offsets <= size - self.lengths).all())

    def blocks(self, block_bytes: int) -> npt.NDArray[np.int64]:
        """Return the numbers of the blocks that the ranges touch, each once, in order."""
        if len(self) == 1 and self.lengths[0]:
            start, length = int(self.offsets[0]), int(self.lengths[0])
            return np.arange(start // block_bytes, (start + length - 1) // block_bytes + 1)
        some = self.lengths > 0
        first = self.offsets[some] // np.uint64(block_bytes)
        last = (self.offsets[some] + self.lengths[some] - np.uint64(1)) // np.uint64(block_bytes)
        if np.array_equal(first, last):  # the usual case: each lies in one block
            return _sorted_once(first.astype(np.int64))
        counts = (last - first + np.uint64(1)).astype(np.int64)
        starts = np.repeat(first.astype(np.int64), counts)
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return _sorted_once(starts + within)

    def pack(self) -> list[object]:
        """Return what msgpack carries: the arrays as two runs of bytes."""
        if self.offsets.dtype == self.lengths.dtype == _WORD:  # as on every usual machine
            return [self.region, self.offsets.tobytes(), self.lengths.tobytes()]
        offsets, lengths = (a.astype(_WORD) for a in (self.offsets, self.lengths))
        return [self.region, offsets.tobytes(), lengths.tobytes()]

    @classmethod
    def read(cls, value: object) -> "Extents":
        """Read what `pack` made; MalformedMessage for what is not that."""
        match value:
            case [region, bytes(offsets), bytes(lengths)] if len(offsets) == len(lengths):
                if len(offsets) % 8 or len(offsets) > 8 * MAX_EXTENTS:
                    raise MalformedMessage("extents", f"at most {MAX_EXTENTS} words of 8 bytes")
                name = text(region, "region", MAX_NAME_BYTES)
                return cls(name, _words(offsets), _words(lengths))
        raise MalformedMessage("extents", "[region, offsets, lengths]")


def check_pairs(local: Extents, remote: Extents) -> None:
    """Raise InvalidValue unless each range has the length of the one that it pairs with."""
    if len(local) != len(remote):
        raise InvalidValue(
            "remote", len(remote), f"must have as many ranges as local: {len(local)}"
        )
    if len(local) > MAX_EXTENTS:
        raise InvalidValue("local", len(local), f"must be at most {MAX_EXTENTS} ranges: split it")
    if local.lengths.tobytes() != remote.lengths.tobytes():
        i = int(np.flatnonzero(local.lengths != remote.lengths)[0])
        remedy = f"must be as long as local's range {i}, {int(local.lengths[i])} bytes"
        raise InvalidValue(f"remote range {i}", int(remote.lengths[i]), remedy)


def merge_pairs(local: Extents, remote: Extents) -> tuple[Extents, Extents]:
    """Join neighbours that follow each other on both sides; ranges of no bytes vanish."""
    if len(local) == 1 and local.lengths[0]:
        return local, remote
    some = local.lengths > 0
    lo, ro, lengths = local.offsets[some], remote.offsets[some], local.lengths[some]
    if not len(lengths):
        return Extents(local.region, lo, lengths), Extents(remote.region, ro, lengths)
    follows = (lo[1:] == lo[:-1] + lengths[:-1]) & (ro[1:] == ro[:-1] + lengths[:-1])
    heads = np.flatnonzero(np.concatenate(([True], ~follows)))
    joined = np.add.reduceat(lengths, heads)
    return Extents(local.region, lo[heads], joined), Extents(remote.region, ro[heads], joined)


def _sorted_once(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return what numpy.unique does, several times as fast."""
    numbers.sort()
    new = np.ones(len(numbers), bool)
    np.not_equal(numbers[1:], numbers[:-1], out=new[1:])
    return numbers if new.all() else numbers[new]


def _words(data: bytes) -> Uint64s:
    return np.frombuffer(data, _WORD).astype(np.uint64, copy=False)
