"""The limit on one host: one thread copies between two pools of its own process."""

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.kvtransfer.peers import pools
from benchmarks.kvtransfer.peers.pair import Pair
from benchmarks.kvtransfer.peers.protocol import Ask, Blocks, Bytes, ReaderEnd

_SOURCE = r"""
#include <stdint.h>
#include <string.h>
void copy(char *a, const char *b, const int64_t *i, const int64_t *j, int64_t n, int64_t size) {
    for (int64_t k = 0; k < n; k++) memcpy(a + i[k] * size, b + j[k] * size, (size_t)size);
}
"""
_COMPILE_S = 60.0

Copy = Callable[[Bytes, Bytes, Blocks, Blocks, int], None]


class Reader(ReaderEnd):
    def __init__(self) -> None:
        compiled = _compiled()
        self.note = "" if compiled else "memcpy without a C compiler: numpy copies, block by block"
        self._copy = compiled or _by_numpy

    def start(self, pool: Bytes, hello: object, ask: Ask) -> None:
        self._into = pool
        self._from = pools.allocate(len(pool))
        pools.fill(self._from)

    def read(self, into: Blocks, source: Blocks, block_bytes: int) -> None:
        self._copy(self._into, self._from, into, source, block_bytes)

    def close(self) -> None:
        return


def contender(option: str) -> Pair:
    return Pair(Reader(), None)


def _compiled() -> Copy | None:
    """Return the loop in C; None where nothing compiles it."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "copy.c"), Path(folder, "copy.so")
        source.write_text(_SOURCE)
        command = ["cc", "-O3", "-shared", "-fPIC", "-o", str(library), str(source)]
        try:
            subprocess.run(command, check=True, timeout=_COMPILE_S)
        except (OSError, subprocess.SubprocessError):
            return None
        function = ctypes.CDLL(str(library)).copy
    function.argtypes = [*[ctypes.c_void_p] * 4, ctypes.c_int64, ctypes.c_int64]
    function.restype = None

    def copy(pool: Bytes, other: Bytes, into: Blocks, source: Blocks, size: int) -> None:
        arrays = (array.ctypes.data for array in (pool, other, into, source))
        function(*arrays, len(into), size)

    return copy


def _by_numpy(pool: Bytes, other: Bytes, into: Blocks, source: Blocks, size: int) -> None:
    to, of = (memory.reshape(-1, size) for memory in (pool, other))
    for i, j in np.stack((into, source), axis=1).tolist():
        to[i] = of[j]
