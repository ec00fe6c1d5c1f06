"""A worker's standing in its fleet: its role, and whether it takes anything new."""

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import Literal, get_args

from stafette.workers.errors import Declined, RequestError
from stafette.workers.handover.imports import Imports
from stafette.workers.service.measured import Measured
from stafette.workers.service.serving import Served

Role = Literal["prefill", "decode", "both"]
ROLES = get_args(Role)


class Standing(Served):
    """What every worker, real or simulated, does alike."""

    def __init__(self, role: Role) -> None:
        self.role: Role = role
        self.on_change: Callable[[], None] = lambda: None  # the server's
        self.retiring = False  # when it is empty, whoever keeps the process ends it
        self._leaving = asyncio.Event()

    @property
    def draining(self) -> bool:
        return self._leaving.is_set()

    @property
    @abstractmethod
    def num_running(self) -> int:
        """Sequences that are under way here."""

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """Return whether it can still serve. Any thread may ask."""

    @property
    @abstractmethod
    def num_pinned(self) -> int:
        """Blocks that others may be reading."""

    @abstractmethod
    def relieve(self) -> None:
        """Take back a lease whose reader has had time enough."""

    @abstractmethod
    async def close(self) -> None:
        """End what is under way, and give everything back."""

    @property
    @abstractmethod
    def imports(self) -> Imports:
        """What brings KV here."""

    @abstractmethod
    def measured(self) -> Measured:
        """Return what this worker counts. Used by its event loop."""

    def drain(self, leave: bool = True) -> None:
        """Take nothing new; frontends are told at once, and move what is here elsewhere."""
        if leave:
            self._leaving.set()
        else:
            self._leaving.clear()
            self.retiring = False
        self.on_change()

    async def told_to_leave(self) -> None:
        """Wait until somebody wants this worker to drain."""
        await self._leaving.wait()

    def _raise_if_draining(self) -> None:
        if self.draining:
            raise Declined("worker", self.name, "takes nothing new: it is draining")

    async def _set_role(self, payload: object) -> object:
        """What is under way goes on; frontends learn it with the next beat."""
        if payload not in ROLES:
            raise RequestError("role", payload, f"must be one of {', '.join(ROLES)}")
        before, self.role = self.role, payload  # type: ignore[assignment]
        self.on_change()
        return before

    async def _retire(self, payload: object) -> object:
        """Drain, and then be ended, to be replaced or not."""
        self.retiring = True
        self.drain()
        return self.num_running

    async def _drain(self, payload: object) -> object:
        """False takes it back, as long as this worker has not ended."""
        self.drain(payload is not False)
        return self.num_running
