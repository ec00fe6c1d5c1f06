"""How many requests may still be late: a promised percentile allows a counted share of them.

Giving workers back costs late requests when the load returns. It is done where the promise can
afford them.
"""

from collections import deque
from collections.abc import Sequence

from stafette.platform.planner.config import SloConfig
from stafette.platform.planner.observation import Finished

_AT_ONCE = 0.5  # of what is left may be spent on one return of the load


class Budget:
    """Of the last `window_s`."""

    def __init__(self, slo: SloConfig, window_s: float) -> None:
        self._slo = slo
        self._window_s = window_s
        self._counts: deque[tuple[float, int, int]] = deque()  # at, answers, of them late
        self.answers = 0
        self.late = 0

    def see(self, at: float, finished: Sequence[Finished]) -> None:
        if finished:
            late = sum(is_late(each, self._slo) for each in finished)
            self._counts.append((at, len(finished), late))
            self.answers += len(finished)
            self.late += late
        while self._counts and self._counts[0][0] < at - self._window_s:
            _, answers, late = self._counts.popleft()
            self.answers -= answers
            self.late -= late

    @property
    def at_once(self) -> float:
        """Return how many requests may be late for the sake of one decision."""
        return _AT_ONCE * max(0.0, may_be_late(self._slo) * self.answers - self.late)


def may_be_late(slo: SloConfig) -> float:
    """Return the share of requests that may break either limit."""
    return max(1 - slo.ttft_percentile / 100, 1 - slo.itl_percentile / 100)


def is_late(answer: Finished, slo: SloConfig) -> bool:
    return answer.ttft_ms > slo.ttft_ms or (answer.itl_ms or 0.0) > slo.itl_ms
