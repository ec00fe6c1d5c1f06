"""Which fleet serves a load at the promised speed for the least money: every small choice is tried.

A candidate is a kind (together: each worker does both; apart: pools of prefill and decode), tensor
parallelism, and an engine's two flags of scheduling. How many workers each needs is the planner's
own arithmetic (`stafette.platform.planner.sizing`), queues and percentiles included.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.planner.config import SloConfig
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.shape import Shape
from stafette.platform.planner.sizing import Demand, Sizer, Speeds, Split
from stafette.platform.profiling.document import Document, Limits
from stafette.workers.mocker.speed_profile import Profile

Kind = Literal["together", "apart"]
_MAX_NUM_SEQS = (8, 16, 32, 64, 128, 256, 512)
_IDLE_RATE = 1e-6  # requests a second
_HALVINGS = 6  # of a range in which a rate is looked for
_LEAST_PART = 1e-3  # of the wanted rate: less is none
_MOST_EXTRA = 64  # times the devices that were asked for, where "how many more" is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    rate: float  # requests a second
    prompt_tokens: int
    output_tokens: int
    cached_share: float = 0.0  # of a prompt

    def __post_init__(self) -> None:
        if not 0 < self.rate < inf:
            raise InvalidSetting("--rate", self.rate, "must be above 0")
        for flag, tokens in (("--isl", self.prompt_tokens), ("--osl", self.output_tokens)):
            if tokens < 1:
                raise InvalidSetting(flag, tokens, "must be at least 1")
        if not 0 <= self.cached_share < 1:
            raise InvalidSetting("--cached", self.cached_share, "must be at least 0 and below 1")

    @property
    def demand(self) -> Demand:
        cached = self.prompt_tokens * self.cached_share
        return Demand(
            rate=self.rate, shape=Shape.of(self.prompt_tokens, self.output_tokens, cached)
        )


@dataclass(frozen=True, slots=True)
class Engine:
    """One kind of worker: how fast it is, what it holds, and the flags that it is started with."""

    profile: Profile
    limits: Limits
    overhead_ms: float  # of a first token, outside of steps
    tensor_parallel: int
    max_num_batched_tokens: int
    max_num_seqs: int

    def model(self) -> EngineModel:
        return EngineModel.of_profile(
            self.profile, self.limits.kv_tokens, self.max_num_seqs, self.max_num_batched_tokens
        )


def engines_of(
    document: Document, tensor_parallel: int, budgets: Iterable[int], max_num_seqs: int
) -> list[Engine]:
    """Return a profile's worker with each budget, and as large a batch as it may have."""
    model, overhead_ms = document.model, document.fit.terms.get("first_token_ms", 0.0)
    return [
        Engine(model, document.limits, overhead_ms, tensor_parallel, budget, most)
        for budget in budgets
        if (most := min(budget, max_num_seqs))
    ]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A fleet, and what it is expected to give at the promised percentiles."""

    kind: Kind
    engine: Engine
    split: Split
    speeds: Speeds

    @property
    def devices(self) -> int:
        return self.split.total * self.engine.tensor_parallel

    @property
    def ttft_ms(self) -> float:
        return self.speeds.ttft_ms + self.engine.overhead_ms

    def excess(self, slo: SloConfig) -> float:
        """Return by which factor the worst target is missed; at most 1 when none is."""
        if not self.speeds.fits:
            return inf
        return max(self.ttft_ms / slo.ttft_ms, self.speeds.itl_ms / slo.itl_ms)

    def missed(self, slo: SloConfig) -> int:
        """Return how many targets are."""
        if not self.speeds.fits:
            return 3  # it is not even a fleet
        return (self.ttft_ms > slo.ttft_ms) + (self.speeds.itl_ms > slo.itl_ms)

    def order(self, slo: SloConfig) -> tuple[float, ...]:
        """Few devices first; then what leaves most room, and the simpler fleet."""
        both = self.ttft_ms / slo.ttft_ms + self.speeds.itl_ms / slo.itl_ms
        engine = self.engine
        worst = round(self.excess(slo), 2)
        return self.devices, worst, self.kind == "apart", engine.tensor_parallel, both


class Search:
    """Tries all engines that it is given, for one load and one promise."""

    def __init__(self, engines: Iterable[Engine], load: Load, slo: SloConfig) -> None:
        self.load, self.slo = load, slo
        self.engines = [engine for engine in engines if self._holds(engine)]
        if not self.engines:
            tokens = load.prompt_tokens + load.output_tokens
            remedy = "is more than any such worker's memory or max_model_len takes"
            raise InvalidSetting("--isl + --osl", tokens, remedy)

    def cheapest(self, devices: int) -> Candidate | None:
        """Return the one with the fewest devices that keeps the promise."""
        found = min(self.keeping(devices), key=lambda each: each.order(self.slo), default=None)
        return found and self.trimmed(found)

    def keeping(self, devices: int) -> list[Candidate]:
        return [
            each
            for each in self._smallest()
            if each.devices <= devices and each.excess(self.slo) <= 1
        ]

    def nearest(self, devices: int) -> Candidate | None:
        """Return what misses least with all devices; None when not even one worker fits."""

        def far(each: Candidate) -> tuple[float, ...]:
            return each.missed(self.slo), each.excess(self.slo), *each.order(self.slo)

        made = (each for engine in self.engines for each in self.every_split(engine, devices))
        found = min(made, key=far, default=None)
        return found and self.trimmed(found)

    def fastest(self) -> tuple[float, float]:
        """Return the first token's and the step's times below which no load and no number helps."""
        alone = [self.of(engine, Split(both=1), _IDLE_RATE) for engine in self.engines]
        return min(each.ttft_ms for each in alone), min(each.speeds.itl_ms for each in alone)

    def more_devices(self, devices: int) -> Candidate | None:
        """Return the smallest fleet that would keep the promise, however many devices it has."""
        return self.cheapest(devices * _MOST_EXTRA)

    def highest_rate(self, devices: int) -> float:
        """Return the most requests a second that these devices serve as promised; 0: none."""
        low, high = self.load.rate / 2, self.load.rate
        while not self._keeps(low, devices):
            if low < self.load.rate * _LEAST_PART:
                return 0.0
            low, high = low / 2, low
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._keeps(middle, devices) else (low, middle)
        return low

    def of(self, engine: Engine, split: Split, rate: float | None = None) -> Candidate:
        """Return what a fleet gives under the load, or under another rate of the same requests."""
        load = self.load if rate is None else replace(self.load, rate=rate)
        kind: Kind = "together" if split.both else "apart"
        return Candidate(kind, engine, split, self._sizer(engine).speeds(load.demand, split))

    def trimmed(self, candidate: Candidate) -> Candidate:
        """Return it with the smallest max_num_seqs under which it keeps what it kept.

        A larger one only ever allows more, so that all others are searched with the largest.
        """
        for most in _MAX_NUM_SEQS:
            if most >= candidate.engine.max_num_seqs:
                break
            engine = replace(candidate.engine, max_num_seqs=most)
            smaller = self.of(engine, candidate.split)
            if smaller.excess(self.slo) <= max(1.0, candidate.excess(self.slo)):
                return smaller
        return candidate

    def every_split(self, engine: Engine, devices: int) -> list[Candidate]:
        return [self.of(engine, split) for split in _splits(engine, devices)]

    def _keeps(self, rate: float, devices: int) -> bool:
        slower = Search(self.engines, replace(self.load, rate=rate), self.slo)
        return bool(slower.keeping(devices))

    def _smallest(self) -> Iterator[Candidate]:
        """Yield for each engine and kind the fewest workers that the planner would take."""
        demand = self.load.demand
        for engine in self.engines:
            sizer = self._sizer(engine)
            together = sizer.together(demand)
            if together is not None:
                yield self.of(engine, together.split)
            yield self.of(engine, sizer.apart(demand).split)

    def _sizer(self, engine: Engine) -> Sizer:
        own_ms = max(self.slo.ttft_ms - engine.overhead_ms, 1e-3)
        return Sizer(engine.model(), replace(self.slo, ttft_ms=own_ms))

    def _holds(self, engine: Engine) -> bool:
        limits = engine.limits
        tokens = self.load.prompt_tokens + self.load.output_tokens
        return tokens <= limits.kv_tokens and tokens <= (limits.max_model_len or inf)


def dollars_per_million(candidate: Candidate, load: Load, price: float) -> tuple[float, float]:
    """Return what a million output tokens cost, and a million of all tokens, at the load's rate."""
    an_hour = candidate.devices * price / 3600
    outputs = load.rate * load.output_tokens
    everything = outputs + load.rate * load.prompt_tokens
    return 1e6 * an_hour / outputs, 1e6 * an_hour / everything


def _splits(engine: Engine, devices: int) -> Iterator[Split]:
    """Yield all ways to use that many devices."""
    workers = devices // engine.tensor_parallel
    if workers:
        yield Split(both=workers)
    for prefill in range(1, workers):
        yield Split(prefill=prefill, decode=workers - prefill)
