"""Requests that come whatever happens to the others: at a rate, of some lengths."""

import math
import random
from collections.abc import Iterator
from functools import partial

from stafette.platform.twin.arrivals import Arrival
from stafette.platform.twin.prompts import Piece, prompt_of
from stafette.platform.twin.workloads.config import LengthsConfig, WorkloadConfig
from stafette.platform.twin.workloads.rates import Diurnal, Stairs, bursty, stairs, step, times

_OWN = 1 << 24  # pieces below it are shared beginnings


class OpenLoop:
    def __init__(self, config: WorkloadConfig) -> None:
        self._config = config

    @property
    def duration_s(self) -> float:
        return self._config.duration_s

    def arrivals(self) -> Iterator[Arrival]:
        config = self._config
        rate = _rate(config)
        coming = times(rate, rate.most, config.duration_s, random.Random(f"{config.seed} times"))
        rng = random.Random(f"{config.seed} lengths")
        for number, at_s in enumerate(coming):
            lengths = self._lengths(at_s, rng)
            pieces = draw_prompt(lengths, _OWN + number, rng)
            output = draw(
                lengths.output_tokens, lengths.output_spread, lengths.max_output_tokens, rng
            )
            prompt = partial(prompt_of, pieces)
            yield Arrival(at_s=at_s, make_prompt=prompt, output_tokens=output)

    def _lengths(self, at_s: float, rng: random.Random) -> LengthsConfig:
        shift = self._config.shift
        if shift is None:
            return self._config.lengths
        done = (at_s - shift.at_s) / shift.over_s if shift.over_s else float(at_s >= shift.at_s)
        return shift.lengths if rng.random() < done else self._config.lengths


def draw(mean: float, spread: float, most: int, rng: random.Random) -> int:
    """Return a log-normal length around a mean."""
    drawn = mean * math.exp(rng.gauss(-spread * spread / 2, spread)) if spread else mean
    return max(1, min(round(drawn), most))


def draw_prompt(lengths: LengthsConfig, own: int, rng: random.Random) -> list[Piece]:
    """Return the pieces of a prompt: a beginning that others share, if any, and its own."""
    total = draw(lengths.prompt_tokens, lengths.prompt_spread, lengths.max_prompt_tokens, rng)
    shared = min(lengths.shared_tokens, total - 1)
    beginning = [Piece(rng.randrange(lengths.beginnings), shared)] if shared > 0 else []
    return [*beginning, Piece(own, total - max(0, shared))]


def _rate(config: WorkloadConfig) -> Stairs | Diurnal:
    rng = random.Random(f"{config.seed} rate")
    if config.bursty is not None:
        return bursty(config.bursty, config.duration_s, rng)
    if config.diurnal is not None:
        return Diurnal(config.diurnal, config.duration_s, rng)
    if config.step is not None:
        return step(config.step)
    if config.stairs is not None:
        return stairs(config.stairs)
    assert config.poisson is not None, "one kind is given"
    return Stairs([(0.0, config.poisson.requests_s)])
