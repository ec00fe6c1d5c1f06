"""What people have decided over the planner's head, each with an end."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from stafette.platform.frontend.errors import InvalidSetting


@dataclass(frozen=True, slots=True)
class Pin:
    pool: str
    replicas: int
    until: float  # on the planner's clock


class Pins:
    def __init__(self, pools: Iterable[str]) -> None:
        self._known = list(pools)
        self._pins: dict[str, Pin] = {}

    def pin(self, pool: str, replicas: int, until: float) -> None:
        """Hold a pool at a size, whatever the planner thinks; limits and budget do not count."""
        self._check(pool)
        if replicas < 0:
            raise InvalidSetting("replicas", replicas, "must be at least 0")
        if not math.isfinite(until):
            raise InvalidSetting("until", until, "must be a time: every pin has an end")
        self._pins[pool] = Pin(pool, replicas, until)

    def unpin(self, pool: str) -> bool:
        """Return whether there was one."""
        self._check(pool)
        return self._pins.pop(pool, None) is not None

    def active(self, at: float) -> dict[str, Pin]:
        self._pins = {name: pin for name, pin in self._pins.items() if pin.until > at}
        return dict(self._pins)

    def _check(self, pool: str) -> None:
        if pool not in self._known:
            raise InvalidSetting(
                "pool", pool, f"is not planned; there are {', '.join(self._known)}"
            )
