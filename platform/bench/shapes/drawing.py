"""Lengths and times at random, the same for the same seed."""

import random
from collections.abc import Iterator
from typing import Literal

from stafette.platform.bench.load import Conversation, Lengths, Turn
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.twin.prompts import Piece

Arrivals = Literal["poisson", "gamma", "constant"]
OWN = 1 << 20  # pieces below it are shared beginnings
LEAST_REQUESTS = 10


def draw_tokens(lengths: Lengths, rng: random.Random) -> int:
    return max(1, round(rng.gauss(lengths.isl, lengths.std)))


def single_requests(lengths: Lengths, count: int, seed: str) -> Iterator[Conversation]:
    """Yield requests that share nothing."""
    rng = random.Random(seed)
    for number in range(count):
        pieces = [Piece(OWN + number, draw_tokens(lengths, rng))]
        turn = Turn(pieces=pieces, output_tokens=lengths.osl)
        yield Conversation(name=f"q{number}", turns=(turn,))


def gaps(rate: float, arrivals: Arrivals, burstiness: float, seed: str) -> Iterator[float]:
    """Yield the seconds from one arrival to the next; of gamma, below 1 is burstier than Poisson.

    `burstiness` is gamma's shape, as in vLLM's and SGLang's own benchmarks: 1 is Poisson.
    """
    rng = random.Random(seed)
    while True:
        if arrivals == "constant":
            yield 1 / rate
        elif arrivals == "poisson":
            yield rng.expovariate(rate)
        else:
            yield rng.gammavariate(burstiness, 1 / (rate * burstiness))


def check_above_zero(option: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise InvalidSetting(option, value, "must be a number above 0")


def check_levels(option: str, values: tuple[int, ...] | tuple[float, ...]) -> None:
    if not values:
        raise InvalidSetting(option, None, "name at least one")
    for value in values:
        check_above_zero(option, value)
    if len(set(values)) != len(values):
        raise InvalidSetting(option, values, "names a level twice")
