"""So many requests a second, whatever becomes of them: Poisson, gamma or evenly."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

from stafette.platform.bench.load import Conversation, Lengths, Level
from stafette.platform.bench.shapes.drawing import (
    LEAST_REQUESTS,
    Arrivals,
    check_above_zero,
    check_levels,
    gaps,
    single_requests,
)

_DEFAULT_S = 30.0  # that a level lasts


@dataclass(frozen=True, slots=True, kw_only=True)
class RateShape:
    rates: tuple[float, ...]  # requests a second
    arrivals: Arrivals = "poisson"
    burstiness: float = 1.0  # gamma's shape

    axis: ClassVar[str] = "requests/s that come"

    def __post_init__(self) -> None:
        check_levels("--rates", self.rates)
        check_above_zero("--burstiness", self.burstiness)

    def levels(self, lengths: Lengths, requests: int | None, seed: int) -> Sequence[Level]:
        return [self._level(rate, lengths, requests, seed) for rate in self.rates]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "rate"} | asdict(self)

    def _level(self, rate: float, lengths: Lengths, requests: int | None, seed: int) -> Level:
        name = f"r{rate:g}"
        count = requests or max(LEAST_REQUESTS, round(rate * _DEFAULT_S))
        words = ["--request-rate", f"{rate:g}", "--arrival-pattern", self.arrivals]
        if self.arrivals == "gamma":
            words += ["--arrival-smoothness", f"{self.burstiness:g}"]
        return Level(
            name=name,
            load=rate,
            limit=None,
            num_requests=count,
            conversations=partial(self._coming, rate, lengths, count, f"{seed} {name}"),
            aiperf=words,
        )

    def _coming(
        self, rate: float, lengths: Lengths, count: int, seed: str
    ) -> Iterator[Conversation]:
        between = gaps(rate, self.arrivals, self.burstiness, f"{seed} times")
        at_s = 0.0
        for conversation in single_requests(lengths, count, seed):
            yield replace(conversation, due_s=at_s)
            at_s += next(between)
