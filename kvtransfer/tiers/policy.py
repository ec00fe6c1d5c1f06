"""The contract of an eviction policy: which block of a full tier goes first.

A policy sees keys and nothing else. Pins and chains are the business of `BlockCache`: it asks for a
victim, and gives it back when that one must stay.
"""

from abc import ABC, abstractmethod

from stafette.kvtransfer.errors import InvalidValue


class EvictionPolicy(ABC):
    """Orders the blocks of one tier. Not thread-safe: its tier's lock protects it."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise InvalidValue("capacity", capacity, "must be at least 1 block")
        self.capacity = capacity

    @abstractmethod
    def __len__(self) -> int:
        """Return how many blocks could be victims."""

    @abstractmethod
    def add(self, key: bytes) -> None:
        """Take a block that is not here."""

    @abstractmethod
    def touch(self, key: bytes) -> None:
        """Note that a block that is here was used."""

    @abstractmethod
    def remove(self, key: bytes) -> None:
        """Forget a block that is here."""

    @abstractmethod
    def evict(self) -> bytes:
        """Take out the block that goes next; KeyError when there is none."""

    @abstractmethod
    def restore(self, key: bytes) -> None:
        """Take back what `evict` gave, because it had to stay. It should go soon."""
