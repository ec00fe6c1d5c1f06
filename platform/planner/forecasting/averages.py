"""It goes on as it is: as the last value, or as the mean of the last ones."""

import numpy as np

from stafette.platform.planner.forecasting.forecaster import Forecaster, Series


class Constant(Forecaster):
    name = "constant"

    def path(self, series: Series, horizon: int) -> Series:
        return np.full(horizon, series[-1])


class MovingAverage(Forecaster):
    def __init__(self, window: int) -> None:
        self.name = f"mean of {window}"
        self._window = window

    def path(self, series: Series, horizon: int) -> Series:
        return np.full(horizon, series[-self._window :].mean())
