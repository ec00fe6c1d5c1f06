"""The table of blocks and their holders, native: see table.h."""

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from stafette.kvtransfer.events import Tier
from stafette.router.table import GROUP_WORDS, Answer, BlockTable, TableStats, tier_bit

_NAME = "_table"
_WORD_BYTES = 4

_U32, _U64, _SIZE = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_size_t
_AT, _BYTES = ctypes.c_void_p, ctypes.c_char_p
_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "new": (_AT, [_U64]),
    "free": (None, [_AT]),
    "store": (_U64, [_AT, _U32, _U32, _BYTES, _SIZE, _SIZE]),
    "remove": (_U64, [_AT, _U32, _U32, _BYTES, _SIZE, _SIZE]),
    "forget": (_U64, [_AT, _U32]),
    "match": (_SIZE, [_AT, _BYTES, _SIZE, _SIZE, _AT]),
    "held": (_U64, [_AT, _U32]),
    "stats": (None, [_AT, _AT]),
}


@cache
def load() -> ctypes.PyDLL | None:
    """Return the library, or None where it was not built, or was built for another machine.

    A PyDLL keeps Python's lock: each call is one step for all threads, and takes microseconds.
    """
    folder = Path(__file__).parent
    paths = (folder / f"{_NAME}{suffix}" for suffix in EXTENSION_SUFFIXES)
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        return None
    try:
        library = ctypes.PyDLL(str(found))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, f"stafette_table_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return library


class NativeTable(BlockTable):
    def __init__(self, library: ctypes.PyDLL, max_entries: int) -> None:
        self._library = library
        self._store = library.stafette_table_store
        self._match = library.stafette_table_match
        self._handle: int | None = library.stafette_table_new(max_entries)
        if self._handle is None:
            raise MemoryError(f"no addresses for {max_entries} entries: lower index.max_entries")
        self._make_room(64)

    def store(self, slot: int, tier: Tier, hashes: bytes, width: int) -> int:
        if slot >= self._room:
            self._make_room(2 * slot)
        bit = tier_bit(tier)
        fresh: int = self._store(self._handle, slot, bit, hashes, len(hashes) // width, width)
        return fresh

    def remove(self, slot: int, tier: Tier | None, hashes: bytes, width: int) -> int:
        count, bits = len(hashes) // width, tier_bit(tier)
        remove = self._library.stafette_table_remove
        gone: int = remove(self._handle, slot, bits, hashes, count, width)
        return gone

    def forget(self, slot: int) -> int:
        count: int = self._library.stafette_table_forget(self._handle, slot)
        return count

    def match(self, hashes: bytes, width: int) -> Answer:
        count = len(hashes) // width
        words: int = self._match(self._handle, hashes, count, width, self._out_at)
        return Answer(ctypes.string_at(self._out_at, words * _WORD_BYTES))

    def held(self, slot: int) -> int:
        count: int = self._library.stafette_table_held(self._handle, slot)
        return count

    def stats(self) -> TableStats:
        out = (_U64 * 4)()
        self._library.stafette_table_stats(self._handle, ctypes.addressof(out))
        return TableStats(*out)

    def close(self) -> None:
        if self._handle is not None:
            self._library.stafette_table_free(self._handle)
            self._handle = None

    def _make_room(self, num_slots: int) -> None:
        """Keep room for an answer that names every slot."""
        self._room = num_slots
        self._out = (_U32 * (1 + (GROUP_WORDS + 1) * num_slots))()
        self._out_at = ctypes.addressof(self._out)


def make_table(max_entries: int) -> BlockTable | None:
    """Return a native table, or None where the library is not there."""
    library = load()
    return None if library is None else NativeTable(library, max_entries)
