"""Finds the native libraries beside this file. They are optional: each user has a fallback."""

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def find(name: str) -> Path | None:
    """Return where the library lies, or None where it was not built."""
    folder = Path(__file__).parent
    paths = (folder / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def load(name: str) -> ctypes.CDLL | None:
    """Return the library, or None where it was not built, or was built for another machine."""
    found = find(name)
    try:
        return None if found is None else ctypes.CDLL(str(found))
    except OSError:
        return None
