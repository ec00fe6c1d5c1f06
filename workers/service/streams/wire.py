"""A stream of whole messages between frontend and worker: what every way to carry it promises."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from stafette.workers.service.config import ServiceConfig


class StreamEnded(Exception):
    """The other end gave up, and said why."""


class Wire(ABC):
    """One end. A single reader; `write` does not mix messages up, whoever calls it."""

    max_bytes: int  # of a message that is read; a longer one is MalformedMessage

    @property
    @abstractmethod
    def peer(self) -> str:
        """Where the other end is."""

    @abstractmethod
    async def read(self) -> bytes | None:
        """Return the next message; None at the stream's end, StreamEnded when a reason was told."""

    @abstractmethod
    async def write(self, message: bytes) -> None:
        """Send a message; return when there is room for another one."""

    @abstractmethod
    async def close(self, reason: str = "", timeout_s: float = 1.0) -> None:
        """End the stream behind what was written; a worker may say why."""

    @abstractmethod
    def abort(self) -> None:
        """End the stream now. Safe to call twice."""

    def __aiter__(self) -> "Wire":
        return self

    async def __anext__(self) -> bytes:
        message = await self.read()
        if message is None:
            raise StopAsyncIteration
        return message


Serve = Callable[[Wire], Awaitable[None]]


class Listener(ABC):
    """A worker's end of all its streams."""

    @property
    @abstractmethod
    def port(self) -> int: ...

    @abstractmethod
    async def close(self) -> None:
        """End every stream, and let nobody in any more. Safe to call twice."""


class Stream(ABC):
    """One way to carry messages. OSError tells that there is no such address, or nobody at it."""

    @abstractmethod
    async def listen(self, config: ServiceConfig, serve: Serve) -> Listener:
        """Let `serve` have each wire of a stranger, who may say little until its limit is raised.

        A stream ends with its `serve`.
        """

    @abstractmethod
    async def connect(self, address: str, config: ServiceConfig) -> Wire: ...
