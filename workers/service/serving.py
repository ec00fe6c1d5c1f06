"""What a worker serves: the contract between its service and whatever is behind it."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Protocol

from stafette.workers.request import OutputDelta
from stafette.workers.service.frames import Order

Operation = Callable[[object], Awaitable[object]]  # of a question's payload; values of msgpack


class Served(Protocol):
    """An engine, alone or with its hand-over.

    RequestError refuses, Declined sends to another worker, EngineDead ends it all.
    """

    on_change: Callable[[], None]  # the server's: to be called when `load` has news that matter

    @property
    def name(self) -> str: ...

    @property
    def epoch(self) -> int:
        """Count the lives of this name: a later one is higher."""

    def describe(self) -> Mapping[str, object]:
        """Return what frontends need to know of this worker."""

    def load(self) -> Mapping[str, object]:
        """Return how busy it is, as often as it beats."""

    def generate(self, order: Order) -> AsyncGenerator[OutputDelta, None]:
        """Answer a request; leaving early aborts it."""

    async def prefill(self, order: Order) -> Mapping[str, object]:
        """Compute a prompt for another worker; return what became of it."""

    def operations(self) -> Mapping[str, Operation]:
        """Return what else can be asked of this worker."""
