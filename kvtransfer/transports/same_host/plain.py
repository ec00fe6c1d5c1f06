"""Scattered copies without the native library: numpy, many ranges of one length at a time."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

from stafette.kvtransfer.extents import Extents, Uint64s
from stafette.kvtransfer.memory import Bytes

CHUNK_BYTES = 1 << 20  # between two looks at whether to stop


def pieces(first: Extents, second: Extents) -> Iterator[tuple[Uint64s, Uint64s, int]]:
    """Cut pairs of ranges into groups: offsets here, offsets there, the length of each.

    A group has one length, and about CHUNK_BYTES at most.
    """
    here, there, lengths = _cut(first, second)
    order = np.argsort(lengths, kind="stable")
    for some, length in _alike(lengths[order]):
        chosen = order[some]
        yield here[chosen], there[chosen], length


def copy(
    into: tuple[Bytes, Extents],
    source: tuple[Bytes, Extents],
    stopped: Callable[[], bool],
    advance: Callable[[int], None],
) -> bool:
    """Copy pairs of ranges; return False when it was stopped before the end."""
    for to, of, length in pieces(into[1], source[1]):
        if stopped():
            return False
        if len(to) == 1:
            start, origin = int(to[0]), int(of[0])
            into[0][start : start + length] = source[0][origin : origin + length]
        else:
            _windows(into[0], length)[to] = _windows(source[0], length)[of]
        advance(len(to) * length)
    return True


def in_order(memory: Bytes, extents: Extents) -> Iterator[Bytes]:
    """Return the bytes of the ranges in the list's order, many small ranges at a time."""
    for some, length in _alike(extents.lengths):
        offsets = extents.offsets[some]
        if len(offsets) == 1:
            yield memory[int(offsets[0]) : int(offsets[0]) + length]
        else:
            yield _windows(memory, length)[offsets]


def _alike(lengths: Uint64s) -> Iterator[tuple[slice, int]]:
    """Return runs of equal lengths above 0, each of about CHUNK_BYTES at most."""
    ends = np.flatnonzero(np.append(lengths[1:] != lengths[:-1], True)) + 1
    start = 0
    for end in ends.tolist() if len(lengths) else []:
        length = int(lengths[start])
        step = max(1, CHUNK_BYTES // max(1, length))
        for begin in range(start, end if length else start, step):
            yield slice(begin, min(end, begin + step)), length
        start = end


def _cut(first: Extents, second: Extents) -> tuple[Uint64s, Uint64s, Uint64s]:
    """Cut ranges that are longer than a chunk; drop those of no bytes."""
    chunk = np.uint64(CHUNK_BYTES)
    counts = ((first.lengths + chunk - np.uint64(1)) // chunk).astype(np.int64)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    done = (np.arange(len(starts)) - starts).astype(np.uint64) * chunk
    here, there, whole = (
        np.repeat(each, counts) for each in (first.offsets, second.offsets, first.lengths)
    )
    return here + done, there + done, np.minimum(whole - done, chunk)


def _windows(memory: Bytes, length: int) -> Bytes:
    """Return all the ranges of a length, the i-th begins at byte i; no byte is copied."""
    shape = len(memory) - length + 1, length
    return as_strided(memory, shape, (1, 1), writeable=memory.flags.writeable)
