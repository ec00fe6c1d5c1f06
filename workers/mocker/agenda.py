"""What is to happen later, by the time at which it is due."""

import heapq
import itertools
from collections.abc import Callable


class Appointment:
    """One call that is due once; `cancel` may come too late."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Agenda:
    """Calls at equal times are made in the order in which they were asked for."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Appointment]] = []
        self._numbers = itertools.count()

    def at(self, when: float, action: Callable[[], None]) -> Appointment:
        appointment = Appointment(action)
        heapq.heappush(self._entries, (when, next(self._numbers), appointment))
        return appointment

    @property
    def next_at(self) -> float | None:
        entries = self._entries
        while entries and entries[0][2].action is None:
            heapq.heappop(entries)
        return entries[0][0] if entries else None

    def run(self, now: float) -> None:
        """Make every call that is due, also those that they ask for."""
        while (due := self.next_at) is not None and due <= now:
            action = heapq.heappop(self._entries)[2].action
            assert action is not None, "next_at drops what was cancelled"
            action()
