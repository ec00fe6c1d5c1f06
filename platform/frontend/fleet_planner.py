"""What the API needs of the planner, wherever it runs."""

from typing import Any, Protocol

NO_PLANNER: dict[str, Any] = {"mode": "off", "pools": {}, "plans": [], "effects": []}


class FleetPlanner(Protocol):
    """Errors: InvalidSetting for a wrong argument, Unavailable when it does not answer."""

    async def overview(self, last: int) -> dict[str, Any]:
        """Return its pools, last plans, and what became of them, as plain values."""
        ...

    async def pin(self, pool: str, replicas: int, for_s: float) -> None: ...

    async def unpin(self, pool: str) -> bool:
        """Return whether the pool was pinned."""
        ...
