"""What a router's index must be able to do to be measured.

A block is a number of 64 bits; a chain is a list of them, each number stands for all before it.
Each contender gets chains in the form that it takes in production, prepared before the clock runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

Chain = Sequence[int]


class IndexContender(ABC):
    @abstractmethod
    def hashes(self, chain: Chain) -> Any:
        """Return the chain in the form in which the router's events hold it."""

    @abstractmethod
    def encode_stored(self, worker: int, parent: int | None, hashes: Any) -> Any:
        """Return the event that the worker holds these blocks now, as the router takes it."""

    @abstractmethod
    def encode_removed(self, worker: int, hashes: Any) -> Any: ...

    @abstractmethod
    def apply(self, event: Any) -> None: ...

    @abstractmethod
    def flush(self) -> None:
        """Return when all that was applied can be found."""

    @abstractmethod
    def query(self, chain: Chain) -> Any:
        """Return a prompt's chain as the router's own hashing returns it."""

    @abstractmethod
    def look_up(self, query: Any) -> Any:
        """Return the answer as the index gives it."""

    @abstractmethod
    def match(self, query: Any) -> dict[Any, Any]:
        """Return how much each worker holds that holds any."""

    @abstractmethod
    def depth(self, held: Any) -> int:
        """Return the number of blocks that a value of `match` stands for."""


class PlacementContender(ABC):
    """A whole decision: token ids in, a worker out."""

    @abstractmethod
    def start(self, workers: int, block_size: int) -> None: ...

    @abstractmethod
    def stored(self, worker: int, parent: Sequence[int], tokens: Sequence[int]) -> None:
        """The worker holds the blocks of these tokens, behind those of `parent`."""

    @abstractmethod
    def settle(self) -> None:
        """Return when all that was stored can be found."""

    @abstractmethod
    def place(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
        """Return for each prompt the worker, and the seconds that this took."""

    @abstractmethod
    def close(self) -> None: ...
