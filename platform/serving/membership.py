"""Who the workers are, as some directory says it, and what a fleet makes of that.

A directory forgets a worker as soon as it is told to stop. A fleet must not: what the worker has
under way goes on, and it says itself that it takes nothing new. It is let go when its stream ends.
"""

from collections.abc import Mapping
from typing import Protocol

from stafette.platform.serving.frontend_peers import FrontendPeers
from stafette.platform.serving.links import Links

Addresses = Mapping[str, str]  # of the workers, by name


class Discovery(Protocol):
    """Tells who is there, workers and other frontends, in the event loop that calls `start`.

    `frontends` None: whoever asks is no frontend, and need not know them.
    """

    def start(self, membership: "Membership", frontends: FrontendPeers | None) -> None: ...

    async def close(self) -> None: ...


class Membership:
    """Passes a directory's workers on to a fleet, with those that leave at their own pace."""

    def __init__(self, fleet: Links) -> None:
        self._fleet = fleet
        self._told: dict[str, str] = {}
        self._leaving: dict[str, str] = {}  # gone from the directory, but not from us

    @property
    def leaving(self) -> frozenset[str]:
        return frozenset(self._leaving)

    def take(self, addresses: Addresses) -> None:
        """The directory names these now."""
        gone = {name: a for name, a in self._told.items() if addresses.get(name) != a}
        self._told = dict(addresses)
        self._leaving |= {name: a for name, a in gone.items() if name not in addresses}
        for name in addresses:
            self._leaving.pop(name, None)
        self._follow()

    async def let_go(self) -> None:
        """Forget, for ever, those that have left when their stream has ended."""
        while True:
            self._fleet.changed.clear()
            self._follow()
            await self._fleet.changed.wait()

    def _follow(self) -> None:
        connected = self._fleet.clients
        for name in [n for n in self._leaving if n not in connected]:
            del self._leaving[name]
        self._fleet.follow(self._leaving | self._told)
