"""Why each request went where it went, and what came of it.

A decision is kept with its candidates, the terms of their costs, who was left out and why, and the
margin; when the truth comes, with the regret. The last ones stay in a ring.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from stafette.router.errors import InvalidValue
from stafette.router.index import Overlap
from stafette.router.load import LoadView
from stafette.router.request import Candidate, Option, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainConfig:
    decisions: int = 1_000  # that are kept
    options: int = 16  # of each, the cheapest; the chosen one is always there; as many left out

    def __post_init__(self) -> None:
        for name in ("decisions", "options"):
            if getattr(self, name) < 1:
                raise InvalidValue(f"explain.{name}", getattr(self, name), "must be at least 1")


@dataclass(slots=True)
class Decision:
    request: Request
    at: float
    policy: str
    options: Sequence[Option]  # cheapest first
    chosen: Option
    candidates: Sequence[Candidate]
    left_out: Mapping[str, str]  # target -> reason
    best_cached_tokens: int  # that any candidate holds
    num_candidates: int  # where not all of them are kept
    num_left_out: int = 0
    actual_cached_tokens: int | None = None
    actual_ttft_ms: float | None = None

    def candidate(self, target: str) -> Candidate:
        return next(one for one in self.candidates if one.target == target)

    @property
    def margin(self) -> float:
        """Return by how much the best other option is dearer; negative: it was cheaper."""
        others = [o.cost for o in self.options if o is not self.chosen]
        return min(others) - self.chosen.cost if others else 0.0

    @property
    def ttft_error_ms(self) -> float | None:
        """Return by how much the first token came later than predicted."""
        if self.actual_ttft_ms is None:
            return None
        return self.actual_ttft_ms - self.chosen.ttft_ms

    @property
    def regret_ms(self) -> float | None:
        """Return how much sooner the best other option promised the first token; 0: it did not."""
        if self.actual_ttft_ms is None:
            return None
        others = [o.ttft_ms for o in self.options if o is not self.chosen]
        return max(0.0, self.actual_ttft_ms - min(others, default=self.actual_ttft_ms))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "request_id": self.request.request_id,
            "at": self.at,
            "policy": self.policy,
            "prompt_tokens": self.request.prompt_tokens,
            "chosen": _names(self.chosen),
            "margin": self.margin,
            "predicted": {
                "ttft_ms": self.chosen.ttft_ms,
                "cached_tokens": self.chosen.cached_tokens,
            },
            "actual": {
                "ttft_ms": self.actual_ttft_ms,
                "cached_tokens": self.actual_cached_tokens,
            },
            "regret_ms": self.regret_ms,
            "best_cached_tokens": self.best_cached_tokens,
            "options": [self._option(option) for option in self.options],
            "left_out": dict(self.left_out),
            "num_candidates": max(self.num_candidates, len(self.candidates)),
            "num_left_out": max(self.num_left_out, len(self.left_out)),
        }

    def _option(self, option: Option) -> dict[str, Any]:
        shown = _names(option) | {
            "cost": option.cost,
            "terms": option.terms,
            "ttft_ms": option.ttft_ms,
            "cached_tokens": option.cached_tokens,
            "source": option.source._asdict() if option.source else None,
        }
        for role in ("decode", "prefill"):
            if shown[role] is not None:
                candidate = self.candidate(shown[role])
                shown[f"{role}_overlap"] = _overlap(candidate.overlap)
                shown[f"{role}_load"] = _load(candidate.load)
        return shown


@dataclass(slots=True)
class DecisionCounters:
    """Sums over all decisions; the means are theirs to take."""

    decisions: int = 0
    rejected: int = 0  # nobody could take the request
    prompt_tokens: int = 0
    chosen_cached_tokens: int = 0  # predicted
    best_cached_tokens: int = 0  # that the best candidate held
    not_best_overlap: int = 0  # decisions for a target that did not hold most
    remote_prefills: int = 0
    pulls: int = 0
    outcomes: int = 0  # whose truth is known
    actual_cached_tokens: int = 0
    predicted_cached_tokens: int = 0  # of those whose truth is known
    ttft_ms: float = 0.0
    ttft_abs_error_ms: float = 0.0
    regret_ms: float = 0.0


class Decisions:
    """The last decisions, and the counts of all."""

    def __init__(self, config: ExplainConfig) -> None:
        self.counters = DecisionCounters()
        self._config = config
        self._kept: OrderedDict[str, Decision] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, decision: Decision) -> None:
        if decision.num_candidates + len(decision.left_out) > self._config.options:
            self._shorten(decision)
        request_id = decision.request.request_id
        if request_id in self._kept:
            del self._kept[request_id]
        self._kept[request_id] = decision
        if len(self._kept) > self._config.decisions:
            self._kept.popitem(last=False)
        self._count(decision)

    def last(self, count: int = 10) -> list[Decision]:
        """Return the newest decisions, the newest first."""
        newest = reversed(self._kept.values())
        return [decision for _, decision in zip(range(count), newest, strict=False)]

    def of(self, request_id: str) -> Decision | None:
        return self._kept.get(request_id)

    def settle(self, request_id: str, cached_tokens: int | None, ttft_ms: float | None) -> None:
        """Note what came of a decision, if it is still kept. The first word counts."""
        decision = self._kept.get(request_id)
        if decision is None or decision.actual_ttft_ms is not None or ttft_ms is None:
            return
        decision.actual_ttft_ms = ttft_ms
        decision.actual_cached_tokens = cached_tokens
        counters = self.counters
        counters.outcomes += 1
        counters.ttft_ms += ttft_ms
        counters.ttft_abs_error_ms += abs(decision.ttft_error_ms or 0.0)
        counters.regret_ms += decision.regret_ms or 0.0
        if cached_tokens is not None:
            counters.actual_cached_tokens += cached_tokens
            counters.predicted_cached_tokens += decision.chosen.cached_tokens

    def _shorten(self, decision: Decision) -> None:
        """Keep what fits: a thousand decisions of a thousand targets would be a million."""
        most = self._config.options
        options = list(decision.options[:most])
        if all(option is not decision.chosen for option in options):
            options[-1] = decision.chosen
        named = {name for option in options for name in (option.decode, option.prefill)}
        decision.num_left_out = len(decision.left_out)
        decision.options = options
        decision.candidates = [one for one in decision.candidates if one.target in named]
        decision.left_out = dict(islice(decision.left_out.items(), most))

    def _count(self, decision: Decision) -> None:
        counters, chosen = self.counters, decision.chosen
        counters.decisions += 1
        counters.prompt_tokens += decision.request.prompt_tokens
        counters.chosen_cached_tokens += chosen.cached_tokens
        counters.best_cached_tokens += decision.best_cached_tokens
        counters.not_best_overlap += chosen.cached_tokens < decision.best_cached_tokens
        counters.remote_prefills += chosen.prefill is not None
        counters.pulls += chosen.source is not None


def _names(option: Option) -> dict[str, Any]:
    return {"decode": option.decode, "prefill": option.prefill}


def _overlap(overlap: Overlap) -> dict[str, int]:
    return {tier: blocks for tier, blocks in overlap._asdict().items() if blocks}


def _load(load: LoadView) -> dict[str, float]:
    return load._asdict()
