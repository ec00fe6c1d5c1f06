"""One moment, as the decisions see it."""

from dataclasses import dataclass

from stafette.platform.planner.demand import Demand
from stafette.platform.planner.live import Live
from stafette.platform.planner.measured import Kept
from stafette.platform.planner.observation import Observation, WorkerState
from stafette.platform.planner.shape import Shape
from stafette.platform.planner.sizing import Sizer
from stafette.platform.planner.traffic import Rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    at: float
    observation: Observation
    workers: tuple[WorkerState, ...]  # that serve
    rates: Rates
    shape: Shape
    live: Live
    kept: Kept
    idle_s: float
    local_ms: float  # of prefilling that a request costs the worker that decodes it
    may_be_late: float = 0.0  # requests, for the sake of one decision

    @property
    def asleep(self) -> bool:
        """Return whether nobody asks for anything, and nothing is under way."""
        seen = self.observation
        busy = any(w.running or w.waiting or w.queued_tokens for w in self.workers)
        return not (seen.arrivals or seen.waiting or busy)

    def demand(self, rate: float, backlog_ms: float = 0.0) -> Demand:
        return Demand(
            rate=rate,
            shape=self.shape,
            dispersion=self.rates.dispersion,
            backlog_ms=backlog_ms,
            local_ms=self.local_ms,
        )

    def demand_now(self, sizer: Sizer, workers: int, drain_s: float) -> Demand:
        """Return what is to be served at this moment, with what has piled up."""
        rate = self.rates.now if self.rates.jumped else self.rates.middle
        piled = self.piled_ms(sizer, workers)
        return self.demand(rate, min(piled / drain_s, 1e3 * workers))

    def piled_ms(self, sizer: Sizer, workers: int) -> float:
        """Return the prefilling beyond what `workers` do within half the promised time."""
        each_ms = sizer.mean_prompt_ms(self.shape)
        tokens = self.shape.mean_prompt * (1 - self.shape.hit_rate)
        queued = self.live.queued_tokens / max(tokens, 1.0) + self.observation.waiting
        return max(0.0, queued * each_ms - workers * sizer.slo.ttft_ms / 2)
