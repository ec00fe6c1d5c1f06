"""The pools: their memory, their content, the lists of blocks, and the check of what was read."""

import mmap

import numpy as np

from benchmarks.kvtransfer.peers.protocol import Blocks, Bytes, Lists, Run

POOL_BYTES = 512 << 20  # far more than the caches hold

_WORD_BYTES = 8
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: no two words of a pool are equal, and none is 0
_CHUNK_BYTES = 16 << 20
_LEAST_LISTS, _MOST_LISTS = 400, 4000
_LISTED_BLOCKS = 1 << 17


def allocate(nbytes: int = POOL_BYTES) -> Bytes:
    """Return private memory, in huge pages where the system gives them."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    pool = np.frombuffer(memory, np.uint8)
    pool[:] = 0  # touched now, not while somebody measures
    return pool


def fill(pool: Bytes) -> None:
    """Give every word of the pool a content that tells where it is."""
    words = pool.view(np.uint64)
    step = _CHUNK_BYTES // _WORD_BYTES
    for first in range(0, len(words), step):
        words[first : first + step] = _content(np.arange(first, min(first + step, len(words))))


def lists(run: Run, pool_bytes: int) -> list[Lists]:
    """Return pairs of lists, (into, source), each of different blocks in random order."""
    random = np.random.default_rng(run.seed)
    places = pool_bytes // run.block_bytes

    def draw() -> Blocks:
        return random.choice(places, run.num_blocks, replace=False).astype(np.int64)

    count = min(_MOST_LISTS, max(_LEAST_LISTS, _LISTED_BLOCKS // run.num_blocks))
    return [(draw(), draw()) for _ in range(count)]


def wrong_bytes(pool: Bytes, into: Blocks, source: Blocks, block_bytes: int) -> str:
    """Return what is wrong with a pool that was 0 before one list was read; empty: nothing.

    The pool is 0 afterwards.
    """
    rows = pool[: len(pool) // block_bytes * block_bytes].view(np.uint64)
    rows = rows.reshape(-1, block_bytes // _WORD_BYTES)
    chunk = max(1, _CHUNK_BYTES // block_bytes)
    inside = np.arange(rows.shape[1])
    for first in range(0, len(into), chunk):
        some = slice(first, first + chunk)
        wanted = _content(source[some, None] * rows.shape[1] + inside)
        if not np.array_equal(rows[into[some]], wanted):
            return f"blocks {first}.. of the list do not hold what the owner has"
        rows[into[some]] = 0
    return "bytes outside of the list were written" if pool.view(np.uint64).any() else ""


def _content(numbers: Blocks) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    return (numbers.astype(np.uint64) + np.uint64(1)) * _FACTOR
