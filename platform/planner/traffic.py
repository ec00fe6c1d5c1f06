"""What comes in: counted, forecast, and watched for jumps that no forecast waits for."""

from collections import deque
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np

from stafette.platform.planner.bursts import Bursts
from stafette.platform.planner.forecasting.contest import Contest, Forecast
from stafette.platform.planner.observation import Observation
from stafette.platform.planner.queueing import dispersion_of

_WINDOWS_S = (3.0, 5.0, 10.0, 20.0, 40.0)  # in which a jump is looked for
_JUMP = 4.5  # standard deviations, after the square root has made them equal
_CALM_S = 30.0  # after a jump, until the next one
_CHANCE = 0.5  # of a count's root, which is a standard deviation of it
_TELLING_S = 60.0  # of the past, beyond which a forecast hardly rests on more
NONE = "nobody yet"
_KEPT_S = 600.0
_GRAIN_S = 5.0  # of the counts that say how unevenly requests come
_BUSY = 12  # bins with requests, whose mean is what comes when requests come
_IDLE = 3  # bins without any, after which it is a return when one comes


@dataclass(frozen=True, slots=True)
class Rates:
    """Requests a second."""

    now: float
    middle: float  # within the horizon
    upper: float  # that will rarely be exceeded
    model: str
    dispersion: float
    jumped: bool
    busy: float = 0.0  # before nobody asked, or now

    @property
    def unknown(self) -> bool:
        """Return whether no forecast is possible yet."""
        return self.model == NONE and not self.jumped


class Traffic:
    """`may_be_late` is the share of requests for which no burst need be expected."""

    def __init__(
        self, bin_s: float, horizon_s: float, quantile: float, may_be_late: float = 0.05
    ) -> None:
        horizon = max(2, ceil(horizon_s / bin_s))
        self.contest = Contest(horizon, quantile, bin_s)
        self._bursts = Bursts(horizon // 2, bin_s, may_be_late)
        self._busy: deque[float] = deque(maxlen=_BUSY)  # bins in which requests came
        self._returned_at: float | None = None
        self._bin_s = bin_s
        self._counts: deque[tuple[float, float, int]] = deque()  # end, seconds, arrivals
        self._open_arrivals = 0
        self._open_s = 0.0
        self._dispersion = 1.0
        self._said: deque[tuple[float, Forecast]] = deque()  # forecasts, and when they were made
        self._level_since: float | None = None  # when what they rest on began
        self._jumped_at: float | None = None
        self._jump_rate = 0.0
        self._jump_count, self._jump_window_s = 0.0, 1.0  # that showed it
        self.idle_since: float | None = None
        self.jumps = 0

    def see(self, observation: Observation) -> None:
        at, arrivals = observation.at, observation.arrivals
        self._counts.append((at, observation.window_s, arrivals))
        while self._counts[0][0] <= at - _KEPT_S:
            self._counts.popleft()
        if arrivals or observation.waiting:
            if self.idle_since is not None and at - self.idle_since >= _IDLE * self._bin_s:
                self._returned_at = at
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = at - observation.window_s
        self._level_since = (
            at - observation.window_s if self._level_since is None else self._level_since
        )
        self._fill_bin(at, observation.window_s, arrivals)
        self._look_for_jump(at)

    def forget_gap(self) -> None:
        """Nobody has looked for a while: what a bin was about to become is worth nothing."""
        self._open_arrivals, self._open_s = 0, 0.0
        self._counts.clear()
        self._said.clear()
        self._level_since = None

    def rates(self) -> Rates:
        now = self._mean(_WINDOWS_S[-1])
        forecast = self.contest.forecast()
        dispersion, busy = self._dispersion, self._busy_rate
        if forecast is None:
            told = self._jump_rate if self._jumped_at is not None else now
            upper = told + sqrt(max(told, 0.0) / _WINDOWS_S[-1])
            upper = max(upper, self._returning)
            return Rates(told, told, upper, NONE, dispersion, self._jumped_at is not None, busy)
        middle, upper, jumped = forecast.middle, forecast.upper, self._jumping
        upper = max(upper, self._bursts.room_for(middle), self._returning)
        if jumped:
            now = self._jump_rate
            upper = max(upper, now)
        return Rates(now, middle, upper, forecast.model, dispersion, jumped, busy)

    def _fill_bin(self, at: float, seconds: float, arrivals: int) -> None:
        self._open_arrivals += arrivals
        self._open_s += seconds
        if self._open_s >= self._bin_s * 0.999:
            rate = self._open_arrivals / self._open_s
            if rate > 0:  # who is not there comes neither evenly nor unevenly
                self._dispersion = self._uneven()
            self.contest.observe(rate)
            self._bursts.see(rate, self._dispersion)
            self._note_forecast(at)
            if rate > 0:
                self._busy.append(rate)
            self._open_arrivals, self._open_s = 0, 0.0

    @property
    def _busy_rate(self) -> float:
        return sum(self._busy) / len(self._busy) if self._busy else 0.0

    @property
    def _returning(self) -> float:
        """Return what came before nobody asked, when requests have just begun to come again."""
        if self._returned_at is None or not self._counts:
            return 0.0
        young = self._counts[-1][0] - self._returned_at < _IDLE * self._bin_s
        return self._busy_rate if young else 0.0

    @property
    def _jumping(self) -> bool:
        """Return whether a jump upwards is too young for the forecast to know it."""
        if self._jumped_at is None or not self._counts:
            return False
        return self._counts[-1][0] - self._jumped_at < 3 * self._bin_s

    def _note_forecast(self, at: float) -> None:
        forecast = self.contest.forecast()
        if forecast is not None:
            self._said.append((at, forecast))
        while len(self._said) > 1 and self._said[1][0] <= at - _WINDOWS_S[-1]:
            self._said.popleft()

    def _look_for_jump(self, at: float) -> None:
        spread = sqrt(max(self._dispersion, 1.0))
        if self._jumping:
            self._jump_rate = self._rate_since_jump(at)
        if self._jumped_at is not None and at - self._jumped_at < _CALM_S:
            return
        for window in _WINDOWS_S:
            forecast = self._said_before(at - window)
            if forecast is None:
                return
            count, seconds = self._sum(window)
            far = 2 * (sqrt(count) - sqrt(forecast.middle * seconds))
            far /= spread * sqrt(1 + window / self._known_s(at - window))
            if far > _JUMP and count / seconds > forecast.upper:
                # Chance has helped whatever is noticed: what it has not done is asked for at once,
                # and the rest as it shows.
                self._jump(at, self._without_chance(count), seconds)
                return
            if far < -_JUMP and window >= _WINDOWS_S[2] and seconds >= window * 0.9:
                self._jump(at, count, seconds)
                return

    def _said_before(self, at: float) -> Forecast | None:
        """Return what was forecast before a window began: what has come since is in later ones."""
        for when, forecast in reversed(self._said):
            if when <= at + 1e-9:
                return forecast
        return self._said[0][1] if self._said else None

    def _known_s(self, at: float) -> float:
        """Return how much of the past a forecast of then rests on."""
        known = at - (at if self._level_since is None else self._level_since)
        return min(max(known, self._bin_s), _TELLING_S)

    def _rate_since_jump(self, at: float) -> float:
        """Return how high it goes: that shows more clearly the longer it lasts."""
        since = at - (at if self._jumped_at is None else self._jumped_at)
        if since <= 0:
            return self._jump_rate
        count = self._sum(since)[0]
        together = (self._jump_count + count) / (self._jump_window_s + since)
        # What showed the jump may have begun before it.
        return max(together, self._without_chance(count) / since)

    def _without_chance(self, count: int) -> float:
        spread = sqrt(max(self._dispersion, 1.0))
        return max(sqrt(count) - _CHANCE * spread, 0.0) ** 2

    def _jump(self, at: float, count: float, seconds: float) -> None:
        self._jumped_at = at
        self._jump_count, self._jump_window_s = count, seconds
        self._jump_rate = count / seconds
        self.jumps += 1
        self.contest.shift()
        self._said.clear()
        self._level_since = at
        self._open_arrivals, self._open_s = 0, 0.0

    def _sum(self, window_s: float) -> tuple[int, float]:
        count, seconds = 0, 0.0
        for _, covered, arrivals in reversed(self._counts):
            count += arrivals
            seconds += covered
            if seconds >= window_s * 0.999:
                break
        return count, seconds

    def _mean(self, window_s: float) -> float:
        count, seconds = self._sum(window_s)
        return count / seconds if seconds else 0.0

    def _uneven(self) -> float:
        """Return the counts' dispersion; a jump is none."""
        grains, arrivals, seconds = [], 0, 0.0
        for at, covered, count in self._counts:
            if self._jumped_at is not None and at <= self._jumped_at:
                continue
            arrivals += count
            seconds += covered
            if seconds >= _GRAIN_S * 0.999:
                grains.append(arrivals)
                arrivals, seconds = 0, 0.0
        # A few counts tell little: they are pulled towards what random arrivals have.
        weight = len(grains) / (len(grains) + 12)
        return 1.0 + weight * (dispersion_of(np.array(grains, dtype=np.float64)) - 1.0)
