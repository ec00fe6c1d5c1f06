"""Loads that nobody planned for: their kind, rates, lengths and times are drawn at random."""

import random
from dataclasses import replace

from benchmarks.planner.scenarios import USUAL, Scenario
from stafette.platform.twin.workloads.config import (
    BurstyConfig,
    DiurnalConfig,
    LengthsConfig,
    PoissonConfig,
    StairsConfig,
    StepConfig,
    WorkloadConfig,
)


def others(count: int) -> list[Scenario]:
    """Return so many; the first ones are the same for every count."""
    makers = (_diurnal, _step, _stairs, _bursty, _poisson)
    return [
        makers[number % len(makers)](f"other {number + 1}", random.Random(f"other {number}"))
        for number in range(count)
    ]


def _lengths(rng: random.Random) -> LengthsConfig:
    return replace(
        USUAL,
        prompt_tokens=rng.randrange(1_500, 4_500),
        output_tokens=rng.randrange(60, 180),
        prompt_spread=rng.uniform(0.2, 0.6),
        output_spread=rng.uniform(0.2, 0.6),
    )


def _diurnal(name: str, rng: random.Random) -> Scenario:
    rate, swing, factor = rng.uniform(0.6, 1.5), rng.uniform(0.4, 0.9), rng.uniform(1.3, 2.5)
    period_s = rng.uniform(900.0, 1_800.0)
    told = DiurnalConfig(
        requests_s=rate,
        amplitude=swing,
        period_s=period_s,
        bursts=rng.uniform(0.5, 3.0),
        burst_factor=factor,
        burst_s=rng.uniform(30.0, 90.0),
    )
    lengths = _lengths(rng)
    workload = WorkloadConfig(diurnal=told, duration_s=1.5 * period_s, lengths=lengths)
    peak, begin = rate * (1 + swing) * factor, rate * (1 - swing)
    return _scenario(f"{name}: diurnal", workload, rate, peak, begin)


def _step(name: str, rng: random.Random) -> Scenario:
    rate, factor = rng.uniform(0.4, 1.5), rng.uniform(1.5, 4.0)
    duration_s = rng.uniform(900.0, 1_500.0)
    at_s = rng.uniform(0.3, 0.5) * duration_s
    told = StepConfig(requests_s=rate, factor=factor, at_s=at_s)
    workload = WorkloadConfig(step=told, duration_s=duration_s, lengths=_lengths(rng))
    mean = rate * (1 + (factor - 1) * (1 - at_s / duration_s))
    return _scenario(f"{name}: step", workload, mean, rate * factor, rate)


def _stairs(name: str, rng: random.Random) -> Scenario:
    rates = [rng.uniform(0.3, 2.5) for _ in range(4)]
    step_s = rng.uniform(240.0, 420.0)
    told = StairsConfig(rates=tuple((number * step_s, rate) for number, rate in enumerate(rates)))
    workload = WorkloadConfig(stairs=told, duration_s=4 * step_s, lengths=_lengths(rng))
    return _scenario(f"{name}: stairs", workload, sum(rates) / 4, max(rates), rates[0])


def _bursty(name: str, rng: random.Random) -> Scenario:
    rate, factor = rng.uniform(0.5, 1.2), rng.uniform(1.5, 3.0)
    quiet_s, burst_s = rng.uniform(120.0, 400.0), rng.uniform(20.0, 120.0)
    told = BurstyConfig(requests_s=rate, factor=factor, quiet_s=quiet_s, burst_s=burst_s)
    workload = WorkloadConfig(bursty=told, duration_s=1_500.0, lengths=_lengths(rng))
    mean = rate * (quiet_s + factor * burst_s) / (quiet_s + burst_s)
    return _scenario(f"{name}: bursts", workload, mean, rate * factor, rate)


def _poisson(name: str, rng: random.Random) -> Scenario:
    rate = rng.uniform(0.5, 3.0)
    workload = WorkloadConfig(
        poisson=PoissonConfig(requests_s=rate), duration_s=1_200.0, lengths=_lengths(rng)
    )
    return _scenario(f"{name}: level", workload, rate, rate, rate)


def _scenario(
    name: str, workload: WorkloadConfig, mean_s: float, peak_s: float, begin_s: float
) -> Scenario:
    return Scenario(
        name=name,
        workload=workload,
        mean_s=mean_s,
        peak_s=peak_s,
        begin_s=begin_s,
        peak_lengths=workload.lengths,
    )
