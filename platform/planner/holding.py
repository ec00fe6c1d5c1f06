"""The slow lever's patience: more replicas at once, fewer only when that has been enough for long.

How long is learned: who had to take a reduction back soon waits longer before it goes below that
size again. What is above it was needed for something else, and goes as it always does.
"""

from collections import deque

_REGRET_S = 600.0  # a reduction taken back within so long has saved less than it has cost
_LONGER = 4.0  # times as long as before, after such a reduction
_LONGEST = 8.0  # times the usual patience


class Patience:
    """Looks at one number of workers over time."""

    def __init__(self, hold_s: float) -> None:
        self._least_s = hold_s
        self.hold_s = hold_s
        self._needs: deque[tuple[float, int]] = deque()
        self._reduced_at: float | None = None
        self._reduced_from = 0
        self._regretted = 0  # the size that was taken back
        self._since: float | None = None

    def note(self, at: float, need: int) -> None:
        """Take what would be needed now."""
        self._since = at if self._since is None else self._since
        self._needs.append((at, need))
        while self._needs[0][0] < at - self.hold_s:
            self._needs.popleft()

    def lowest(self, at: float, current: int) -> int:
        """Return how few were enough all along; `current` until that is known for long enough."""
        if self._since is None or at - self._since < self._least_s:
            return current
        usual = self._most_since(at - self._least_s)
        if usual >= self._regretted or self.hold_s == self._least_s:
            return min(current, usual)
        known = at - self._since >= self.hold_s
        patient = self._most_since(at - self.hold_s) if known else current
        return min(current, max(usual, min(self._regretted, patient)))

    def grew(self, at: float) -> None:
        if self._reduced_at is not None and at - self._reduced_at < _REGRET_S:
            self.hold_s = min(_LONGER * self.hold_s, _LONGEST * self._least_s)
            self._regretted = self._reduced_from
        self._reduced_at = None

    def shrank(self, at: float, before: int) -> None:
        if self._reduced_at is not None and at - self._reduced_at > _REGRET_S:
            self.hold_s = max(self.hold_s / _LONGER, self._least_s)
        self._reduced_at, self._reduced_from = at, before

    def _most_since(self, since: float) -> int:
        return max((need for at, need in self._needs if at >= since), default=0)
