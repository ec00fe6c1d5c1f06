"""What a level of load needed once it will need again: chance alone makes needs wander.

The same load has moments that ask for a worker more. Giving that worker back between them saves
little and costs a start each time. It goes when the load has clearly fallen, or after an hour.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from math import sqrt

REMEMBERED_S = 3_600.0
_AROUND_S = 300.0  # a moment, whose mean was its level
_NOW_S = 600.0  # at most, whose mean is the level now
_CLEAR = 3.0  # standard deviations, from which a level has not fallen by chance


@dataclass(slots=True)
class Levels:
    """Of one pool, or of all. A load is what it takes in workers that are always busy."""

    _at: list[float] = field(default_factory=list)
    _needs: list[int] = field(default_factory=list)
    _sums: list[float] = field(default_factory=lambda: [0.0])  # of the loads before each moment

    def note(self, at: float, need: int, load: float) -> None:
        """Take what would be needed now, for such a load."""
        self._at.append(at)
        self._needs.append(need)
        self._sums.append(self._sums[-1] + load)
        old = bisect_left(self._at, at - REMEMBERED_S)
        del self._at[:old], self._needs[:old], self._sums[:old]

    def needed(self, lowest: int, work_s: float, dispersion: float) -> int:
        """Return the most that was needed, above `lowest`, at a level that has not clearly fallen.

        `work_s` is what a request takes of a worker's time, and says how much of it is chance.
        """
        above = [i for i, need in enumerate(self._needs) if need > lowest]
        if not above or work_s <= 0:
            return lowest
        since = max(above[-1] + 1, bisect_left(self._at, self._at[-1] - _NOW_S))
        if since == len(self._at):
            return self._needs[-1]
        noise = work_s * max(dispersion, 1.0)
        for index in sorted(above, key=lambda i: -self._needs[i]):
            if not self._has_fallen(index, since, noise):
                return self._needs[index]
        return lowest

    def _has_fallen(self, index: int, since: int, noise: float) -> bool:
        begin = bisect_left(self._at, self._at[index] - _AROUND_S)
        end = min(bisect_right(self._at, self._at[index] + _AROUND_S), since)
        then, then_s = self._mean(begin, end)
        now, now_s = self._mean(since, len(self._at))
        far = 2 * (sqrt(then) - sqrt(now))
        return far > _CLEAR * sqrt(noise * (1 / then_s + 1 / now_s))

    def _mean(self, begin: int, end: int) -> tuple[float, float]:
        """Return the mean of these moments, and how many seconds they tell of."""
        mean = (self._sums[end] - self._sums[begin]) / (end - begin)
        pace = (self._at[-1] - self._at[0]) / max(1, len(self._at) - 1)
        return max(mean, 0.0), max((end - begin) * pace, 1e-9)
