"""Which transport to take to a peer: the one that is expected to be quickest and works."""

import math
from dataclasses import dataclass

from stafette.kvtransfer.errors import InvalidValue

_WEIGHT = 0.2  # of the newest measurement
_SMALL_BYTES = 64 << 10  # up to here a transfer measures the set-up, above it the rate


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    failures: int = 3  # in a row, after which a transport to a peer rests
    cool_down_s: float = 1.0  # doubles with every further failure
    max_cool_down_s: float = 30.0
    patience_s: float = 1.0  # a shorter deadline that passes says nothing against the way

    def __post_init__(self) -> None:
        if self.failures < 1:
            raise InvalidValue("breaker.failures", self.failures, "must be at least 1")
        if not 0 < self.cool_down_s <= self.max_cool_down_s:
            remedy = f"must be above 0 and at most max_cool_down_s, {self.max_cool_down_s}"
            raise InvalidValue("breaker.cool_down_s", self.cool_down_s, remedy)
        if not self.patience_s >= 0:
            raise InvalidValue("breaker.patience_s", self.patience_s, "must be at least 0")


@dataclass(frozen=True, slots=True)
class RouteView:
    """What can be seen of a route."""

    transport: str
    setup_us: float
    gb_per_s: float
    measured: int  # transfers that these two come from; 0: they are expectations
    failures: int  # in a row
    rests_s: float  # 0: it is in use


class Route:
    """One transport to one peer: what it costs, and whether it rests after failures."""

    def __init__(
        self, transport: str, setup_us: float, gb_per_s: float, breaker: BreakerConfig
    ) -> None:
        self.transport = transport
        self._setup_s = setup_us / 1e6
        self._bytes_per_s = gb_per_s * 1e9
        self._breaker = breaker
        self._measured = 0
        self._failures = 0
        self._rests_until = 0.0

    def expected_s(self, nbytes: int) -> float:
        return self._setup_s + nbytes / self._bytes_per_s

    def rests_s(self, now: float) -> float:
        return max(0.0, self._rests_until - now)

    def succeeded(self, nbytes: int, seconds: float) -> None:
        self._failures = 0
        self._rests_until = 0.0
        self._measured += 1
        if nbytes <= _SMALL_BYTES:
            self._setup_s += _WEIGHT * (seconds - self._setup_s)
        elif seconds > self._setup_s:
            rate = nbytes / (seconds - self._setup_s)
            self._bytes_per_s += _WEIGHT * (rate - self._bytes_per_s)

    def timed_out(self, limit_s: float, now: float) -> None:
        if limit_s >= self._breaker.patience_s:
            self.failed(now)

    def failed(self, now: float) -> None:
        """Count a failure of the way itself; a single try is let through after every rest."""
        self._failures += 1
        beyond = self._failures - self._breaker.failures
        if beyond >= 0:
            rest = self._breaker.cool_down_s * 2.0 ** min(beyond, 16)
            self._rests_until = now + min(rest, self._breaker.max_cool_down_s)

    def view(self, now: float) -> RouteView:
        return RouteView(
            self.transport,
            self._setup_s * 1e6,
            self._bytes_per_s / 1e9,
            self._measured,
            self._failures,
            self.rests_s(now),
        )


def quickest(routes: list[Route], nbytes: int, now: float) -> Route | None:
    """Return the route to take; None when all of them rest. Ties go by name."""
    best, best_s = None, math.inf
    for route in routes:
        if route.rests_s(now):
            continue
        expected_s = route.expected_s(nbytes)
        if expected_s < best_s or (
            best is not None and expected_s == best_s and route.transport < best.transport
        ):
            best, best_s = route, expected_s
    return best
