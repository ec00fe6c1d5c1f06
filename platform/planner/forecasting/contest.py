"""Lets the models forecast side by side, and takes the word of the one that was right most.

What is forecast is the level of the next `horizon` values, the higher of their two halves' means:
that is what there must be room for. Each time a model speaks, it is noted what it would have had to
be raised by, and the raised forecast is judged by what asking for a quantile costs: much for too
little, little for too much. Noise that any count has is no part of the interval: whoever sizes for
it counts on it already.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from stafette.platform.planner.forecasting.arima import Arima
from stafette.platform.planner.forecasting.averages import Constant, MovingAverage
from stafette.platform.planner.forecasting.carrying import as_far_off
from stafette.platform.planner.forecasting.forecaster import Forecaster, Series
from stafette.platform.planner.forecasting.kalman import LocalTrend
from stafette.platform.planner.forecasting.seasonal import Seasonal
from stafette.platform.planner.forecasting.smoothing import HoltWinters

_KEPT = 720  # values of the series
_RESIDUALS = 120
_FEW = 10  # residuals, below which counting noise alone is assumed
_FORGETTING = 0.98  # of a model's cost, each value
_LOYALTY = 0.95  # another model must be so much better before it takes over


def usual_forecasters() -> list[Forecaster]:
    return [
        MovingAverage(6),
        MovingAverage(30),
        MovingAverage(90),
        Constant(),
        HoltWinters(),
        LocalTrend(),
        Seasonal(),
        Arima(),
    ]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The level within the horizon: what is likely, what it rarely exceeds or falls below."""

    model: str
    middle: float
    upper: float
    lower: float


@dataclass(slots=True)
class _Record:
    """One model's past."""

    forecaster: Forecaster
    # What was said, and what came.
    told: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_RESIDUALS))
    cost: float = 0.0
    weight: float = 0.0
    open: deque[tuple[float, float]] = field(default_factory=deque)  # middle, its quantile

    @property
    def mean_cost(self) -> float:
        return self.cost / self.weight if self.weight else np.inf


class Contest:
    def __init__(
        self,
        horizon: int,
        quantile: float,
        interval: float = 1.0,  # seconds that a value is the mean of
        forecasters: Sequence[Forecaster] | None = None,
    ) -> None:
        self.horizon = horizon
        self.quantile = quantile
        self._interval = interval
        chosen = usual_forecasters() if forecasters is None else forecasters
        self._records = [_Record(forecaster) for forecaster in chosen]
        self._values: deque[float] = deque(maxlen=_KEPT)
        self._best = self._records[0]
        self._since = 0  # values since the level jumped
        self._said: Forecast | None = None

    @property
    def values(self) -> Series:
        return np.array(self._values)

    @property
    def costs(self) -> dict[str, float]:
        """Return each model's mean cost, of those that have been judged."""
        return {r.forecaster.name: r.mean_cost for r in self._records if r.weight}

    def observe(self, value: float) -> None:
        """Take the next value; judge what was said of it, and let every model speak again."""
        self._values.append(value)
        self._since += 1
        series = self.values
        actual = level(series[-self.horizon :])
        for record in self._records:
            self._judge(record, actual)
            self._speak(record, series)
        self._elect()
        self._said = self._say()

    def forecast(self) -> Forecast | None:
        """Return what the best model says now; None before the first value, or after a jump."""
        return self._said

    def shift(self) -> None:
        """The level has jumped: models that only know levels begin anew with the next value."""
        self._since = 0
        self._said = None
        for record in self._records:
            record.open.clear()

    def _say(self) -> Forecast | None:
        record = self._best if self._best.open else self._records[0]
        if not record.open:
            return None
        middle, _ = record.open[-1]
        upper = middle + self._beyond_noise(record, middle, self.quantile)
        lower = middle - self._beyond_noise(record, middle, 1 - self.quantile)
        return Forecast(record.forecaster.name, middle, upper, max(lower, 0.0))

    def _judge(self, record: _Record, actual: float) -> None:
        if len(record.open) < self.horizon:
            return
        middle, upper = record.open.popleft()
        record.told.append((middle, actual))
        short = actual - upper
        cost = self.quantile * short if short > 0 else (self.quantile - 1) * short
        record.cost = _FORGETTING * record.cost + cost
        record.weight = _FORGETTING * record.weight + 1

    def _speak(self, record: _Record, series: Series) -> None:
        if record.forecaster.local:
            series = series[-self._since :]
        if len(series) < record.forecaster.least:
            return
        path = record.forecaster.path(series, self.horizon)
        middle = max(level(path), 0.0)
        off = self._quantile_of(record, middle, self.quantile)
        noise = NormalDist().inv_cdf(self.quantile) * np.sqrt(self._noise(middle))
        record.open.append((middle, middle + float(noise if off is None else off)))

    def _beyond_noise(self, record: _Record, middle: float, quantile: float) -> float:
        """Return how far that quantile lies from the middle, less what counting alone explains."""
        off, noise = self._quantile_of(record, middle, quantile), self._noise(middle)
        if off is None:
            return float(np.sqrt(noise))
        usual = NormalDist().inv_cdf(quantile)
        return float(np.sqrt(max(0.0, off * off - usual * usual * noise)))

    def _quantile_of(self, record: _Record, middle: float, quantile: float) -> float | None:
        """Return how far off the quantile of its errors is, had they been made at this level."""
        if len(record.told) < _FEW:
            return None
        middles, actuals = np.array(record.told).T
        return float(np.quantile(as_far_off(middle, middles, actuals), quantile)) - middle

    def _noise(self, middle: float) -> float:
        """Return the variance of half a horizon's mean rate, where requests come at random."""
        return middle / (self._interval * max(1, self.horizon // 2))

    def _elect(self) -> None:
        able = [r for r in self._records if r.weight >= 3 and r.open]
        best = min(able, key=lambda r: (r.mean_cost, r.forecaster.name), default=self._best)
        if best.mean_cost < _LOYALTY * self._best.mean_cost or not self._best.open:
            self._best = best


def level(values: Series) -> float:
    """Return the higher of the two halves' means."""
    half = (len(values) + 1) // 2
    return float(max(values[:half].mean(), values[-half:].mean()))


def backtest(series: Sequence[float], horizon: int, quantile: float = 0.95) -> dict[str, float]:
    """Return what each model would have cost on a series that is known: less is better."""
    contest = Contest(horizon, quantile)
    for value in series:
        contest.observe(value)
    return contest.costs
