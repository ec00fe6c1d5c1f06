"""Policies that look at one thing. Of a disaggregated fleet they choose both halves separately."""

from abc import abstractmethod
from collections.abc import Sequence

from stafette.kvtransfer.blocks import HASH_BYTES
from stafette.router.cost import Terms
from stafette.router.policy import Policy, chance
from stafette.router.request import Candidate, Option, Request


class SimplePolicy(Policy):
    """Puts a price on each target by itself."""

    term = "price"  # the name of the price

    @abstractmethod
    def price(self, request: Request, candidate: Candidate, terms: Terms) -> float: ...

    def options(
        self,
        request: Request,
        prefillers: Sequence[Candidate],
        decoders: Sequence[Candidate],
        terms: Terms,
    ) -> list[Option]:
        self.begin(request, "prefill", [one.target for one in prefillers])
        best = min(
            (self._priced(request, one, terms) for one in prefillers),
            default=None,
            key=lambda option: (option.cost, option.decode),
        )
        self.begin(request, "decode", [one.target for one in decoders])
        found = [self._priced(request, one, terms) for one in decoders]
        if best is not None:
            found = [_behind(best, option) for option in found]
        return sorted(found, key=lambda option: (option.cost, option.decode))

    def begin(self, request: Request, half: str, targets: Sequence[str]) -> None:
        """A request comes; these are the targets that can take this half of it."""

    def _priced(self, request: Request, candidate: Candidate, terms: Terms) -> Option:
        price = self.price(request, candidate, terms)
        cached = min(candidate.overlap.total * terms.block_size, request.prompt_tokens - 1)
        uncached = request.prompt_tokens - cached
        prefill_ms = candidate.performance.prefill_ms(uncached, cached)
        ttft_ms = candidate.load.queue_ms + prefill_ms
        return Option(candidate.target, None, price, (self.term,), (price,), ttft_ms, cached)


class RoundRobinPolicy(SimplePolicy):
    """In the order of their names, one after the other."""

    term = "turn"

    def __init__(self) -> None:
        self._last: dict[str, str] = {}  # by half
        self._turns: dict[str, int] = {}

    def begin(self, request: Request, half: str, targets: Sequence[str]) -> None:
        last = self._last.get(half, "")
        after = sorted(name for name in targets if name > last)
        before = sorted(name for name in targets if name <= last)
        order = [*after, *before]
        self._turns = {name: turn for turn, name in enumerate(order)}
        self._last[half] = order[0] if order else ""

    def price(self, request: Request, candidate: Candidate, terms: Terms) -> float:
        return float(self._turns[candidate.target])


class RandomPolicy(SimplePolicy):
    term = "chance"

    def price(self, request: Request, candidate: Candidate, terms: Terms) -> float:
        return chance(request.request_id, candidate.target)


class LeastLoadedPolicy(SimplePolicy):
    term = "requests"

    def price(self, request: Request, candidate: Candidate, terms: Terms) -> float:
        return float(candidate.load.requests)


class PowerOfTwoPolicy(SimplePolicy):
    """The less loaded one of two that chance names."""

    term = "requests"

    def __init__(self) -> None:
        self._named: set[str] = set()

    def begin(self, request: Request, half: str, targets: Sequence[str]) -> None:
        by_chance = sorted(targets, key=lambda name: chance(request.request_id, name))
        self._named = set(by_chance[:2])

    def price(self, request: Request, candidate: Candidate, terms: Terms) -> float:
        if candidate.target not in self._named:
            return float("inf")
        return float(candidate.load.requests)


class SessionPolicy(SimplePolicy):
    """A session always goes to the same target, as long as that is there.

    When targets come or go, only the sessions of those move (rendezvous hashing).
    """

    term = "distance"

    def price(self, request: Request, candidate: Candidate, terms: Terms) -> float:
        return chance(request.session or request.request_id, candidate.target)


class PrefixAffinityPolicy(SimplePolicy):
    """Prompts that begin alike go to the same target, without any event; not to a crowded one."""

    term = "distance"

    def __init__(self, prefix_blocks: int, crowd_factor: float) -> None:
        self._prefix_bytes = prefix_blocks * HASH_BYTES
        self._crowd_factor = crowd_factor

    def options(
        self,
        request: Request,
        prefillers: Sequence[Candidate],
        decoders: Sequence[Candidate],
        terms: Terms,
    ) -> list[Option]:
        uncrowded = self._uncrowded
        return super().options(request, uncrowded(prefillers), uncrowded(decoders), terms)

    def price(self, request: Request, candidate: Candidate, terms: Terms) -> float:
        prefix = request.chain[: self._prefix_bytes].hex() or request.request_id
        return chance(prefix, candidate.target)

    def _uncrowded(self, group: Sequence[Candidate]) -> list[Candidate]:
        """Leave out those with many more requests than the mean, one more than that at least."""
        mean = sum(one.load.requests for one in group) / max(1, len(group))
        most = max(mean * self._crowd_factor, mean + 1)
        return [one for one in group if one.load.requests <= most]


def _behind(first: Option, option: Option) -> Option:
    """Return the option with its prompt computed by the other one."""
    if first.decode == option.decode:
        return option
    return option._replace(
        prefill=first.decode,
        cost=option.cost + first.cost,
        names=(*option.names, "prefill"),
        values=(*option.values, first.cost),
        ttft_ms=first.ttft_ms,
        cached_tokens=first.cached_tokens,
        source=first.source,
    )
