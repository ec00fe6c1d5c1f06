"""The slow lever's patience: more replicas at once, fewer only when that has been enough for long.

How long is learned: who had to take back a reduction soon waits longer before the next one.
"""

from collections import deque

_REGRET_S = 600.0  # a reduction taken back within so long has saved less than it has cost
_LONGEST = 4.0  # times the configured patience


class Patience:
    """Looks at one number of workers over time."""

    def __init__(self, hold_s: float) -> None:
        self._least_s = hold_s
        self.hold_s = hold_s
        self._needs: deque[tuple[float, int]] = deque()
        self._reduced_at: float | None = None
        self._since: float | None = None

    def note(self, at: float, need: int) -> None:
        """Take what would be needed now."""
        self._since = at if self._since is None else self._since
        self._needs.append((at, need))
        while self._needs[0][0] < at - self.hold_s:
            self._needs.popleft()

    def lowest(self, at: float, current: int) -> int:
        """Return how few were enough all along; `current` until that is known for long enough."""
        if self._since is None or at - self._since < self.hold_s:
            return current
        return min(current, max(need for _, need in self._needs))

    def grew(self, at: float) -> None:
        if self._reduced_at is not None and at - self._reduced_at < _REGRET_S:
            self.hold_s = min(2 * self.hold_s, _LONGEST * self._least_s)
        self._reduced_at = None

    def shrank(self, at: float) -> None:
        if self._reduced_at is not None and at - self._reduced_at > _REGRET_S:
            self.hold_s = max(self.hold_s / 2, self._least_s)
        self._reduced_at = at
