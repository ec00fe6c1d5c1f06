"""A pipe: buffers of bytes go from one process to one other, in order."""

from abc import ABC, abstractmethod
from typing import Any

OWNER, READER = 0, 1  # ranks


class Pending(ABC):
    """A buffer that is under way, which stays untouched until `wait` returns."""

    __slots__ = ()

    @abstractmethod
    def wait(self, deadline: float) -> None:
        """Return when it is through; TimeoutError at the deadline, OSError when it never will."""


class Pipe(ABC):
    """Used by one thread; only `abort` may be called by others. One that failed is of no use."""

    @abstractmethod
    def buffer(self, nbytes: int) -> Any:
        """Return a tensor of bytes that can be sent, or received into."""

    @abstractmethod
    def send(self, buffer: Any) -> Pending: ...

    @abstractmethod
    def receive(self, buffer: Any) -> Pending: ...

    @abstractmethod
    def abort(self) -> None:
        """End everything that is under way, here and, soon, at the other side."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back. Safe to call twice."""
