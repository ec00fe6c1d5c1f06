"""The contract of a policy: it puts a price on each candidate; the cheapest one is chosen."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp

from stafette.router.cost import Terms
from stafette.router.errors import InvalidValue
from stafette.router.lots import lot, number_of, number_of_target
from stafette.router.request import Candidate, Option, Request

_NUMBERS = float(1 << 64)


class Policy(ABC):
    """Made once; called for every request with what there is at that moment."""

    wants_shared_blocks = False  # always; else only where blocks may run out

    @abstractmethod
    def options(
        self,
        request: Request,
        prefillers: Sequence[Candidate],
        decoders: Sequence[Candidate],
        terms: Terms,
    ) -> list[Option]:
        """Return the ways to serve the request, cheapest first.

        `prefillers` are targets that only compute prompts; decoders can do all.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class PickConfig:
    temperature: float = 0.0  # 0: the cheapest; 1: the dearest has 1/e of its chance
    tie_ms: float = 0.5  # costs so close to the least are as good

    def __post_init__(self) -> None:
        for name in ("temperature", "tie_ms"):
            if not getattr(self, name) >= 0:
                raise InvalidValue(f"pick.{name}", getattr(self, name), "must be at least 0")


def pick(options: Sequence[Option], key: str, config: PickConfig) -> Option:
    """Choose one of the options, which are sorted by cost.

    Chance comes from `key`, the request's name (lots.py).
    """
    if config.temperature > 0:
        return _softly(options, key, config.temperature)
    close = options[0].cost + config.tie_ms
    if len(options) == 1 or options[1].cost > close:
        return options[0]
    ties = [option for option in options if option.cost <= close]
    return min(ties, key=lots_of(key))


def lots_of(key: str) -> Callable[[Option], tuple[int, int]]:
    """Return what draws the lots of an option, for the request of that name."""
    request = number_of(key)

    def drawn(option: Option) -> tuple[int, int]:
        first = lot(request, number_of_target(option.decode))
        return first, lot(request, number_of_target(option.prefill)) if option.prefill else 0

    return drawn


def chance(*parts: str) -> float:
    """Return a number in 0..1 that these names always have and that looks random."""
    return number_of("\0".join(parts)) / _NUMBERS


def _softly(options: Sequence[Option], key: str, temperature: float) -> Option:
    """Choose with a chance that falls with the cost, measured by the range of costs."""
    least, most = options[0].cost, options[-1].cost
    scale = (most - least) * temperature
    weights = [exp(-(o.cost - least) / scale) if scale > 0 else 1.0 for o in options]
    mark = chance(key) * sum(weights)
    for option, weight in zip(options, weights, strict=True):
        mark -= weight
        if mark < 0:
            return option
    return options[-1]
