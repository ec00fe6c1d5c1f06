"""How many requests a second are asked for, over time; and when they come, at random."""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator

from stafette.platform.twin.workloads.config import (
    BurstyConfig,
    DiurnalConfig,
    StairsConfig,
    StepConfig,
)

Rate = Callable[[float], float]  # requests a second, by time


class Stairs:
    """A rate that changes at given times."""

    def __init__(self, steps: list[tuple[float, float]]) -> None:
        self._times = [at for at, _ in steps]
        self._rates = [rate for _, rate in steps]

    @property
    def most(self) -> float:
        return max(self._rates)

    def __call__(self, at_s: float) -> float:
        place = bisect_right(self._times, at_s) - 1
        return self._rates[place] if place >= 0 else 0.0


def stairs(config: StairsConfig) -> Stairs:
    return Stairs(list(config.rates))


def step(config: StepConfig) -> Stairs:
    rates = [(0.0, config.requests_s), (config.at_s, config.requests_s * config.factor)]
    if config.until_s is not None:
        rates.append((config.until_s, config.requests_s))
    return Stairs(rates)


def bursty(config: BurstyConfig, duration_s: float, rng: random.Random) -> Stairs:
    rates, at_s = [], 0.0
    while at_s < duration_s:
        rates.append((at_s, config.requests_s))
        at_s += rng.expovariate(1 / config.quiet_s)
        rates.append((at_s, config.requests_s * config.factor))
        at_s += rng.expovariate(1 / config.burst_s)
    return Stairs(rates)


class Diurnal:
    def __init__(self, config: DiurnalConfig, duration_s: float, rng: random.Random) -> None:
        self._config = config
        bursts = [(0.0, 1.0)]
        if config.bursts:
            at_s = rng.expovariate(config.bursts / config.period_s)
            while at_s < duration_s:
                bursts += [(at_s, config.burst_factor), (at_s + config.burst_s, 1.0)]
                at_s += config.burst_s + rng.expovariate(config.bursts / config.period_s)
        self._bursts = Stairs(bursts)

    @property
    def most(self) -> float:
        config = self._config
        return config.requests_s * (1 + config.amplitude) * max(1.0, self._bursts.most)

    def __call__(self, at_s: float) -> float:
        config = self._config
        wave = -math.cos(2 * math.pi * at_s / config.period_s)
        return config.requests_s * (1 + config.amplitude * wave) * self._bursts(at_s)


def times(rate: Rate, most: float, duration_s: float, rng: random.Random) -> Iterator[float]:
    """Yield random times, by thinning those of the highest rate."""
    at_s = 0.0
    while most > 0:
        at_s += rng.expovariate(most)
        if at_s >= duration_s:
            return
        if rng.random() * most < rate(at_s):
            yield at_s
