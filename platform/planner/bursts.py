"""Bursts that came and went: how high, how often. Those that are over before a replica has started
are only served by workers that are there already.

A level that stays is no burst: whatever has not come back after a while is forgotten.
"""

from collections import deque
from dataclasses import dataclass
from math import sqrt

import numpy as np

from stafette.platform.planner.forecasting.carrying import carried
from stafette.platform.planner.forecasting.forecaster import Series

_KEPT = 720  # values
# Standard deviations, from which it is no chance. A burst that is missed costs the promise, one
# that is only imagined a few workers for a while: one in about 17 hours of a constant load.
_CLEAR = 3.5
_BEFORE = 4  # spans, whose mean it rises from
_RISES = 2  # spans, in which it rises: what comes on top later, replicas have had time for
_STAYS = 60  # values, after which it is a level
_HALF = 0.5  # of the share that may be late is left to bursts nobody makes room for


@dataclass(slots=True)
class _Burst:
    base: float
    height: float
    requests: float
    begun: int
    open: bool = True


class Bursts:
    """`span` values are looked at together; `may_be_late` is the share that was promised."""

    def __init__(self, span: int, interval_s: float, may_be_late: float) -> None:
        self._span = max(1, span)
        self._interval_s = interval_s
        self._share = _HALF * may_be_late
        self._values: deque[float] = deque(maxlen=_KEPT)
        self._bursts: list[_Burst] = []
        self._seen = 0

    def see(self, rate: float, dispersion: float) -> None:
        self._values.append(rate)
        self._seen += 1
        self._bursts = [b for b in self._bursts if self._seen - b.begun < _KEPT]
        values = np.array(self._values)
        height = float(values[-self._span :].mean())
        last = self._bursts[-1] if self._bursts and self._bursts[-1].open else None
        begun = self._begun(values, height, dispersion, last)
        if begun is not None:
            if last is not None:
                self._bursts.remove(last)  # it has become the level that this one rises from
            self._bursts.append(begun)
        elif last is not None:
            self._follow(last, rate, height)

    def room_for(self, level: float) -> float:
        """Return the rate that bursts exceed with no more requests than may be late.

        No burst is expected upon a burst: while one lasts, its base is the level.
        """
        over = [b for b in self._bursts if not b.open]
        if not over:
            return 0.0
        if self._bursts[-1].open:
            level = min(level, self._bursts[-1].base)
        bases = np.array([b.base for b in over])
        heights = carried(level, bases, np.array([b.height for b in over]))
        left = self._share * sum(self._values) * self._interval_s
        for place in np.argsort(-heights, kind="stable"):
            left -= over[place].requests
            if left < 0:
                return float(heights[place])
        return 0.0

    def _begun(
        self, values: Series, height: float, dispersion: float, last: _Burst | None
    ) -> _Burst | None:
        """Return the burst that has just begun; `last` is open still."""
        base = self._base(values)
        if base is None or (last is not None and self._rises(last)):
            return None
        before = base if last is None else max(base, last.height)
        if not self._clear(before, height, dispersion):
            return None
        requests = float(values[-self._span :].sum()) * self._interval_s
        return _Burst(base, height, requests, self._seen)

    def _follow(self, burst: _Burst, rate: float, height: float) -> None:
        if self._rises(burst):
            burst.height = max(burst.height, height)
        burst.requests += rate * self._interval_s
        if height < (burst.base + burst.height) / 2:
            burst.open = False
        elif self._seen - burst.begun > _STAYS:
            self._bursts.remove(burst)

    def _rises(self, burst: _Burst) -> bool:
        return self._seen - burst.begun <= _RISES * self._span

    def _base(self, values: Series) -> float | None:
        before = values[-(1 + _BEFORE) * self._span : -self._span]
        return float(before.mean()) if len(before) >= self._span else None

    def _clear(self, base: float, height: float, dispersion: float) -> bool:
        seconds = self._span * self._interval_s
        far = 2 * (sqrt(height * seconds) - sqrt(base * seconds))
        noise = max(dispersion, 1.0) * (1 + 1 / _BEFORE)  # of either count
        return base > 0 and far > _CLEAR * sqrt(noise)
