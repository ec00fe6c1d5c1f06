"""What prefix_ratio.py asks, and how an answer is summed up."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Protocol

from benchmarks.router.completions import Answer


@dataclass(frozen=True, slots=True)
class Load:
    """Prompts come at random times, at a mean rate; answers are 1 to twice the mean long."""

    requests: int = 200
    requests_s: float = 14.0
    prompt_tokens: int = 4_096
    output_tokens: int = 32  # mean
    beginnings: int = 16


@dataclass(frozen=True, slots=True)
class Asked:
    prompts: list[list[int]]
    lengths: list[int]  # of their answers
    times: list[float]  # at which they come, from the start

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.prompts))


@dataclass(frozen=True, slots=True)
class Result:
    ttft_mean_ms: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    total_mean_ms: float
    requests_s: float
    hit_percent: float


class Target(Protocol):
    """Something that answers."""

    def serve(self, asked: Asked) -> tuple[list[Answer], float]:
        """Return the answers, and how long all took."""

    def computed_tokens(self) -> int | None:
        """Return how many prompt tokens were computed until now; None: it does not tell."""


def ask(load: Load, ratio: float, seed: int) -> Asked:
    rng = random.Random(seed)
    times, lengths = arrivals(load, seed)
    return Asked(prompts(load, ratio, rng.getrandbits(32)), lengths, times)


def prompts(load: Load, ratio: float, seed: int) -> list[list[int]]:
    """Return prompts of which that share is one of some common beginnings."""
    rng = random.Random(seed)
    shared = round(load.prompt_tokens * ratio)

    def tokens(count: int) -> list[int]:
        return rng.choices(range(1_000, 40_000), k=count)

    beginnings = [tokens(shared) for _ in range(load.beginnings)]
    rest = load.prompt_tokens - shared
    return [rng.choice(beginnings) + tokens(rest) for _ in range(load.requests)]


def arrivals(load: Load, seed: int) -> tuple[list[float], list[int]]:
    """Return when requests come, and how long their answers are."""
    rng = random.Random(seed)
    times, now = [], 0.0
    for _ in range(load.requests):
        now += rng.expovariate(load.requests_s)
        times.append(now)
    return times, [rng.randrange(1, 2 * load.output_tokens) for _ in range(load.requests)]


def measure(target: Target, asked: Asked) -> Result:
    """Send it all; the hit rate is the share of prompt tokens that were not computed.

    Where the target does not tell, it is what the answers tell.
    """
    before = target.computed_tokens()
    answers, took_s = target.serve(asked)
    after = target.computed_tokens()
    if before is None or after is None:
        missed = asked.num_tokens - sum(answer.cached_tokens for answer in answers)
    else:
        missed = after - before
    return summary(answers, took_s, 100 * (1 - missed / asked.num_tokens))


def summary(answers: Sequence[Answer], took_s: float, hit_percent: float) -> Result:
    firsts = sorted(answer.first_s * 1e3 for answer in answers)
    return Result(
        ttft_mean_ms=mean(firsts),
        ttft_p50_ms=median(firsts),
        ttft_p99_ms=firsts[int(0.99 * (len(firsts) - 1))],
        total_mean_ms=mean(answer.total_s for answer in answers) * 1e3,
        requests_s=len(answers) / took_s,
        hit_percent=hit_percent,
    )


def middle(results: Sequence[Result]) -> Result:
    """Return the medians."""
    names = Result.__slots__
    return Result(*(median(getattr(each, name) for each in results) for name in names))
