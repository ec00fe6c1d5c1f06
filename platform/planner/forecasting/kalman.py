"""A level that wanders and a trend that wanders, seen through noise: the Kalman filter."""

import numpy as np

from stafette.platform.planner.forecasting.forecaster import Forecaster, Series

_DAMPING = 0.97


class LocalTrend(Forecaster):
    """The noises are shares of the series' own: how much of a surprise is the level's."""

    name = "local trend"
    least = 5

    def __init__(self, level: float = 0.1, trend: float = 0.001) -> None:
        self._level_share = level
        self._trend_share = trend

    def path(self, series: Series, horizon: int) -> Series:
        noise = max(float(np.var(np.diff(series))) / 2, 1e-9)
        level, trend = self._filter(series.tolist(), noise)
        return level + trend * np.cumsum(_DAMPING ** np.arange(1, horizon + 1))

    def _filter(self, values: list[float], noise: float) -> tuple[float, float]:
        """Return the state after all values. [[a, b], [b, c]] is its covariance."""
        level, trend = values[0], 0.0
        a, b, c = noise, 0.0, noise * self._trend_share
        for value in values[1:]:
            level += trend
            a, b, c = (
                a + 2 * b + c + noise * self._level_share,
                b + c,
                c + noise * self._trend_share,
            )
            gain_level, gain_trend = a / (a + noise), b / (a + noise)
            surprise = value - level
            level += gain_level * surprise
            trend += gain_trend * surprise
            a, b, c = (1 - gain_level) * a, (1 - gain_level) * b, c - gain_trend * b
        return level, trend
