"""A level and a damped trend, smoothed exponentially; with a season, Holt and Winters's method."""

import numpy as np

from stafette.platform.planner.forecasting.forecaster import Forecaster, Series

_DAMPING = 0.95  # of the trend, each value further: one that goes on for ever is rare


class HoltWinters(Forecaster):
    """The season is added, not multiplied: it works at zero as well."""

    def __init__(
        self, level: float = 0.3, trend: float = 0.05, season: int = 0, seasonal: float = 0.2
    ) -> None:
        self.name = f"holt-winters of {season}" if season else "holt"
        self.least = max(3, 2 * season)
        self.local = not season
        self._level = level
        self._trend = trend
        self._season = season
        self._seasonal = seasonal

    def path(self, series: Series, horizon: int) -> Series:
        season = self._season or 1
        offsets = self._first_offsets(series)
        level, trend = float(series[0] - offsets[0]), 0.0
        for at, value in enumerate(series.tolist()):
            offset = offsets[at % season]
            before = level
            level += _DAMPING * trend
            level += self._level * (value - offset - level)
            trend = (1 - self._trend) * _DAMPING * trend + self._trend * (level - before)
            if self._season:
                offsets[at % season] = offset + self._seasonal * (value - level - offset)
        steps = np.cumsum(_DAMPING ** np.arange(1, horizon + 1))
        ahead = [offsets[(len(series) + step) % season] for step in range(horizon)]
        going_on: Series = level + trend * steps + np.array(ahead)
        return going_on

    def _first_offsets(self, series: Series) -> list[float]:
        """Return by how much each place of the first season was off that season's mean."""
        if not self._season:
            return [0.0]
        first = series[: self._season]
        return list((first - first.mean()).tolist())
