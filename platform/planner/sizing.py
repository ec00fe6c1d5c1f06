"""How few workers keep the promise: prefill and decode together, apart or both on each worker."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil

from stafette.platform.planner.apart import Apart
from stafette.platform.planner.config import SloConfig
from stafette.platform.planner.demand import Demand, Speeds, Split
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.mixed import Mixed
from stafette.platform.planner.plan import Violation
from stafette.platform.planner.promise import Promise
from stafette.platform.planner.queueing import prefill_ms
from stafette.platform.planner.shape import Shape
from stafette.platform.planner.velocity import Velocity

__all__ = ["Demand", "Sizer", "Sizing", "Speeds", "Split"]

# Workers that do both pay where few must do all: one alone, or two. From three on, workers apart
# are no more, and their answers do not wait for prompts.
MOST_TOGETHER = 2
_MOST_BOTH = 4_096  # of a fleet all of which do both


@dataclass(frozen=True, slots=True)
class Sizing:
    split: Split
    decided_by: str
    capacity: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def merged(self) -> "Sizing":
        """Return as many workers, each of which does both."""
        return replace(self, split=Split(both=self.split.total))


class Sizer:
    """Knows the workers and the promise. `decode` are the workers that decode, if others."""

    def __init__(
        self, model: EngineModel, slo: SloConfig, decode: EngineModel | None = None
    ) -> None:
        self.slo = slo
        self._promise = Promise(model, decode or model, slo)
        self._apart = Apart(self._promise)
        self._mixed = Mixed(self._promise)

    def mean_prompt_ms(self, shape: Shape) -> float:
        work = prefill_ms(self._promise.prefill, shape.prompt_tokens, shape.cached_tokens)
        return float(work.mean())

    def work_s(self, shape: Shape) -> Mapping[str, float]:
        """Return what a request takes of the time of workers of each role that are full."""
        prefill, decode = self._velocity(shape).work_s(shape)
        return {"prefill": prefill, "decode": decode, "both": prefill + decode}

    def apart(self, demand: Demand) -> Sizing:
        """Return the fewest prefill workers and decode workers."""
        velocity = self._velocity(demand.shape)
        floor = velocity.least(demand.rate, demand.shape)
        split = self._apart.fewest(demand, floor)
        bound = (split.prefill, split.decode) == (floor.prefill, floor.decode)
        by = "velocity" if bound else "ttft and itl"
        return Sizing(split, by, velocity.as_numbers(), self._notes(demand))

    def together(self, demand: Demand, most: int = _MOST_BOTH) -> Sizing | None:
        """Return the fewest workers that do both; None where not even `most` keep the promise."""
        count = self._mixed.fewest(demand, most)
        if count is None:
            return None
        velocity = self._velocity(demand.shape).as_numbers()
        return Sizing(Split(both=count), "ttft and itl", velocity, self._notes(demand))

    def keeps(self, demand: Demand, split: Split) -> bool:
        """Return whether a split keeps what can be kept of the promise."""
        if split.both and not (split.prefill or split.decode):
            return self._mixed.keeps(demand, split.both)
        return self._apart.keeps(demand, *_halved(split))

    def late_share(self, demand: Demand, split: Split) -> float:
        """Return the share of requests that these workers, apart, answer too late."""
        return self._apart.late_share(demand, split.prefill, split.decode)

    def speeds(self, demand: Demand, split: Split) -> Speeds:
        """Return what a split gives; workers that do both count for each role by its half."""
        if split.both and not (split.prefill or split.decode):
            return self._mixed.speeds(demand, split.both)
        return self._apart.speeds(demand, *_halved(split))

    def violations(self, demand: Demand, split: Split, needed: Split) -> tuple[Violation, ...]:
        """Return which promises a split breaks, and what would keep them."""
        speeds, promise = self.speeds(demand, split), self._promise
        more = f"{needed.total} workers instead of {split.total}"
        found = []
        for target, limit, expected, lone in (
            ("ttft", self.slo.ttft_ms, speeds.ttft_ms, promise.lone_ttft_ms(demand)),
            ("itl", self.slo.itl_ms, speeds.itl_ms, promise.lone_itl_ms(demand)),
        ):
            if expected > limit:
                faster = f"faster workers, or slo.{target}_ms of at least {ceil(lone)}"
                found.append(Violation(target, limit, expected, faster if lone > limit else more))
        return tuple(found)

    def _velocity(self, shape: Shape) -> Velocity:
        of_prompts = Velocity.of(self._promise.prefill, shape, self.slo)
        of_answers = Velocity.of(self._promise.decode, shape, self.slo)
        return replace(of_answers, prefill=of_prompts.prefill)

    def _notes(self, demand: Demand) -> tuple[str, ...]:
        hopeless = self._promise.prompts(demand, 0.0).hopeless
        if hopeless <= (1 - self.slo.ttft_percentile / 100) / 2:
            return ()
        limit = f"slo.ttft_ms = {self.slo.ttft_ms:g}"
        return (f"{hopeless:.1%} of prompts take longer than {limit} even on an idle worker",)


def _halved(split: Split) -> tuple[int, int]:
    return split.prefill + ceil(split.both / 2), split.decode + split.both // 2
