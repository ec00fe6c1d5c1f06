"""ARIMA(p, d, q) by Hannan and Rissanen's two regressions: no search, no other package."""

import numpy as np

from stafette.platform.planner.forecasting.forecaster import Forecaster, Series

_RIDGE = 1e-6  # of the regressors' own size: a constant series has no coefficients


class Arima(Forecaster):
    def __init__(self, p: int = 3, d: int = 1, q: int = 1) -> None:
        self.name = f"arima({p},{d},{q})"
        self.least = 4 * (p + q + d) + 8
        self._p, self._d, self._q = p, d, q

    def path(self, series: Series, horizon: int) -> Series:
        changes = np.diff(series, self._d)
        mean = float(changes.mean()) if self._d == 0 else 0.0
        centred = changes - mean
        shocks = self._shocks(centred)
        weights = self._regress(centred, shocks)
        ahead = self._go_on(centred, shocks, weights, horizon) + mean
        return _integrate(series, ahead, self._d)

    def _shocks(self, values: Series) -> Series:
        """Return what a long autoregression cannot explain: it stands for the unseen noise."""
        order = min(self._p + self._q + 4, len(values) // 3)
        past = _lagged(values, order)
        weights = _least_squares(past, values[order:])
        return np.concatenate([np.zeros(order), values[order:] - past @ weights])

    def _regress(self, values: Series, shocks: Series) -> Series:
        start = max(self._p, self._q)
        past = _lagged(values, self._p)[start - self._p :]
        noise = _lagged(shocks, self._q)[start - self._q :]
        return _least_squares(np.hstack([past, noise]), values[start:])

    def _go_on(self, values: Series, shocks: Series, weights: Series, horizon: int) -> Series:
        past, noise = values.tolist(), shocks.tolist()
        most = 3 * float(np.abs(values).max(initial=0.0))  # an unstable fit must not run away
        for _ in range(horizon):
            known = [past[-lag] for lag in range(1, self._p + 1)]
            known += [noise[-lag] for lag in range(1, self._q + 1)]
            value = float(np.dot(weights, known))
            past.append(min(max(value, -most), most))
            noise.append(0.0)
        return np.array(past[len(values) :])


def _lagged(values: Series, order: int) -> Series:
    """Return a row for each value from the `order`-th on: those before it, the last one first."""
    count = len(values) - order
    columns = [values[order - lag : order - lag + count] for lag in range(1, order + 1)]
    return np.stack(columns, axis=1) if columns else np.empty((count, 0))


def _least_squares(past: Series, values: Series) -> Series:
    square = past.T @ past
    ridge = _RIDGE * max(float(np.trace(square)), 1e-9)
    solved = np.linalg.solve(square + ridge * np.eye(len(square)), past.T @ values)
    return solved.astype(np.float64)


def _integrate(series: Series, changes: Series, times: int) -> Series:
    """Undo `times` differences."""
    if times == 0:
        return changes
    last = float(np.diff(series, times - 1)[-1])
    summed: Series = last + np.add.accumulate(changes, dtype=np.float64)
    return _integrate(series, summed, times - 1)
