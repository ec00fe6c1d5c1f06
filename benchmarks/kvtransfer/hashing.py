"""How fast are block hashes? Goal: 60 million tokens a second, keyed, on one core.

    python benchmarks/kvtransfer/hashing.py [--quick] [--json FILE]

Beside the native chain: the same bytes from hashlib in a Python loop, and, where the xxhash package
is installed, unkeyed XXH3-64 as other routers use it, one hash of the tokens and one of the chain a
block. Times are those of the processor, not of the clock: other work on the machine hardly changes
them.
"""

import argparse
import time
from collections.abc import Callable
from importlib import import_module
from statistics import median

import numpy as np
import numpy.typing as npt

from benchmarks.common.report import Goal, Report
from stafette.kvtransfer.blocks import BlockHasher
from stafette.kvtransfer.native import hashing

GOAL_TOKENS_S = 60e6
BLOCK_SIZES = (16, 32, 64)
SEED = 1337

Tokens = npt.NDArray[np.uint32]


def tokens_per_second(function: Callable[[], object], num_tokens: int, rounds: int) -> float:
    """Return the median by this thread's processor time."""
    function()
    times = []
    for _ in range(rounds):
        started = time.thread_time()
        function()
        times.append(time.thread_time() - started)
    return num_tokens / median(times)


def contenders(tokens: Tokens, block_size: int) -> dict[str, Callable[[], object] | None]:
    """Return what is compared; None is what cannot run here."""
    hasher = BlockHasher("secret", block_size)
    python = BlockHasher("secret", block_size, native=False)
    listed = tokens.tolist()
    native = hashing.load() is not None
    return {
        "native, from an array": (lambda: hasher.hash_blocks(tokens)) if native else None,
        "native, from a list": (lambda: hasher.hash_blocks(listed)) if native else None,
        "hashlib, from an array": lambda: python.hash_blocks(tokens),
        "XXH3-64, unkeyed": xxh3_chain(tokens, block_size),
    }


def xxh3_chain(tokens: Tokens, block_size: int) -> Callable[[], object] | None:
    try:
        xxhash = import_module("xxhash")
    except ImportError:
        return None
    words, step = tokens.tobytes(), block_size * tokens.itemsize

    def chain() -> list[int]:
        hashes, parent = [], b""
        for start in range(0, len(words), step):
            own = xxhash.xxh3_64_digest(words[start : start + step], SEED)
            parent = xxhash.xxh3_64_digest(parent + own, SEED)
            hashes.append(int.from_bytes(parent, "big"))
        return hashes

    return chain


def measure(num_tokens: int, rounds: int) -> Report:
    report = Report(f"Block hashes, million tokens a second ({num_tokens:,} tokens)")
    tokens = np.random.default_rng(0).integers(0, 150_000, num_tokens, dtype=np.uint32)
    rates: dict[str, list[float | None]] = {}
    for block_size in BLOCK_SIZES:
        for name, function in contenders(tokens, block_size).items():
            rate = None if function is None else tokens_per_second(function, num_tokens, rounds)
            rates.setdefault(name, []).append(rate and rate / 1e6)
    headers = ["hash", *(f"blocks of {size}" for size in BLOCK_SIZES)]
    report.table("one core", headers, [[name, *row] for name, row in rates.items()])
    best = rates["native, from an array"][0]
    report.goal(Goal("keyed, blocks of 16, M tokens/s", best, at_least=GOAL_TOKENS_S / 1e6))
    if hashing.load() is None:
        report.note("the native library is not built here: hashlib does the work")
    if rates["XXH3-64, unkeyed"][0] is None:
        report.note("the xxhash package is not installed")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer tokens, fewer rounds")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    size = (1 << 17, 5) if arguments.quick else (1 << 20, 15)
    return measure(*size).finish(arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
