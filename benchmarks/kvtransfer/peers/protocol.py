"""What the driver asks of a system's process, and what every system must be able to do.

Standard library and numpy only: this runs in every peer's own environment.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Blocks = npt.NDArray[np.int64]  # numbers of blocks in a pool
Lists = tuple[Blocks, Blocks]  # into, source
Ask = Callable[[object], object]  # a question to the owner's process, and its answer


@dataclass(frozen=True, slots=True)
class Run:
    """Read lists of `num_blocks` random blocks, one list after the other, for some seconds."""

    num_blocks: int
    block_bytes: int
    seed: int
    seconds: float

    @property
    def nbytes(self) -> int:
        return self.num_blocks * self.block_bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run gave; an answer means that every byte was where it belongs, and no other."""

    p50_s: float  # of one list
    best_s: float
    iterations: int
    cpu_s_per_gb: float  # of both processes, user and system
    note: str = ""  # what the reader of the table should know


class Contender(ABC):
    """One system, in the process that the driver talks to."""

    @abstractmethod
    def measure(self, run: Run) -> Answer: ...

    @abstractmethod
    def close(self) -> None: ...


class OwnerEnd(ABC):
    """The process whose pool is read."""

    @abstractmethod
    def allocate(self) -> Bytes: ...

    @abstractmethod
    def start(self, pool: Bytes) -> object:
        """Offer the pool, filled by now; return what the reader needs to know."""

    def answer(self, question: object) -> object:
        """Answer what the reader asks outside of the measured time."""
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None: ...


class ReaderEnd(ABC):
    """The process that reads."""

    note = ""

    @abstractmethod
    def start(self, pool: Bytes, hello: object, ask: Ask) -> None: ...

    def prepare(self, run: Run) -> None:
        """Do once what a user does once for many lists; not measured."""
        return

    @abstractmethod
    def read(self, into: Blocks, source: Blocks, block_bytes: int) -> None:
        """Copy a list of blocks; they have arrived when it returns."""

    @abstractmethod
    def close(self) -> None: ...
