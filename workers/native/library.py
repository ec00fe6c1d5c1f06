"""Loads the native library, and wraps its handles: Team (threads and kernels), Matrix, Decoder.

The library is optional: `why_not` says why it is not there, and whoever asked goes on with torch.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import TracebackType
from typing import Self

from stafette.workers.native.structs import (
    ABI_VERSION,
    PHASES,
    SIGNATURES,
    AttentionDesc,
    Kind,
    LayerDesc,
    ModelDesc,
    PartDesc,
    StepDesc,
)

_NAME = "_kernels"
_OUT_OF_MEMORY = 2


class NativeError(RuntimeError):
    """The library refused a call: its arguments break its contract."""


@cache
def _load() -> ctypes.CDLL | str:
    """Return the library, or the reason why there is none."""
    folder = Path(__file__).parent
    found = [
        path for suffix in EXTENSION_SUFFIXES if (path := folder / f"{_NAME}{suffix}").is_file()
    ]
    if not found:
        return "the native library was not built: install a C++ compiler (g++), then stafette again"
    try:
        library = ctypes.CDLL(str(found[0]))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return f"the native library does not load: {error}"
    if library.stafette_abi_version() != ABI_VERSION:
        return "the native library is of another version; install stafette again"
    return library


def why_not(isa: str = "") -> str | None:
    """Return None when the library can be used on this processor, else the reason."""
    library = _load()
    if isinstance(library, str):
        return library
    if library.stafette_isa(isa.encode()) is None:
        return f"this processor cannot run the kernels for {isa or 'any instruction set'}"
    return None


def best_isa() -> str:
    """Return the name of the kernels that this processor gets."""
    return str(library().stafette_isa(b"").decode())


def library() -> ctypes.CDLL:
    found = _load()
    if isinstance(found, str):
        raise NativeError(found)
    return found


def check(status: int) -> None:
    if status == 0:
        return
    message = library().stafette_error().decode()
    raise MemoryError(message) if status == _OUT_OF_MEMORY else NativeError(message)


class _Handle:
    """Something that the library made, and frees."""

    _free: str

    def __init__(self) -> None:
        self.pointer = ctypes.c_void_p()

    def close(self) -> None:
        if self.pointer:
            getattr(library(), self._free)(self.pointer)
            self.pointer = ctypes.c_void_p()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Team(_Handle):
    """Threads, and the kernels of one instruction set. Outlives what is made with it."""

    _free = "stafette_engine_free"

    def __init__(self, threads: int, isa: str = "") -> None:
        super().__init__()
        name = isa.encode()
        check(library().stafette_engine_new(threads, name, ctypes.byref(self.pointer)))
        self.isa: str = library().stafette_isa(name).decode()

    def quiesce(self) -> None:
        """Return when no thread reads memory of a past call any more: before that is freed."""
        library().stafette_engine_quiesce(self.pointer)


class Matrix(_Handle):
    """A packed weight matrix. What the parts point to may go once it is made."""

    _free = "stafette_matrix_free"

    def __init__(
        self, team: Team, kind: Kind, shape: tuple[int, int], parts: Sequence[PartDesc]
    ) -> None:
        super().__init__()
        rows, columns = shape
        array = (PartDesc * len(parts))(*parts)
        make = library().stafette_matrix_new
        out = ctypes.byref(self.pointer)
        check(make(team.pointer, kind, rows, columns, array, len(parts), out))

    @property
    def num_bytes(self) -> int:
        return int(library().stafette_matrix_bytes(self.pointer))


class PagedAttention(_Handle):
    """Attention over a paged pool, for a model whose other parts run elsewhere."""

    _free = "stafette_attention_free"

    def __init__(self, team: Team, desc: AttentionDesc) -> None:
        super().__init__()
        make = library().stafette_attention_new
        check(make(team.pointer, ctypes.byref(desc), ctypes.byref(self.pointer)))

    def write(self, desc: AttentionDesc) -> None:
        check(library().stafette_attention_write(self.pointer, ctypes.byref(desc)))

    def attend(self, desc: AttentionDesc) -> None:
        check(library().stafette_attention_run(self.pointer, ctypes.byref(desc)))


class Decoder(_Handle):
    """A whole model. Its team, matrices and rope tables must stay alive beside it."""

    _free = "stafette_model_free"

    def __init__(self, team: Team, desc: ModelDesc, layers: Sequence[LayerDesc]) -> None:
        super().__init__()
        array = (LayerDesc * len(layers))(*layers)
        out = ctypes.byref(self.pointer)
        check(library().stafette_model_new(team.pointer, ctypes.byref(desc), array, out))
        self._step = library().stafette_model_step

    def step(self, desc: StepDesc) -> None:
        status = self._step(self.pointer, ctypes.byref(desc))
        if status:
            check(status)

    def take_times(self) -> dict[str, float]:
        """Return the seconds spent in each phase since the last call."""
        seconds = (ctypes.c_double * len(PHASES))()
        library().stafette_model_times(self.pointer, seconds)
        return dict(zip(PHASES, seconds, strict=True))
