"""Knows every request before it comes: what is possible, and no policy that anybody could use.

At each moment there are the fewest workers that keep the promise for the requests of a window
around it, and each was asked for a start-up time before. Roles are the planner's. How long the
window is, and how unevenly requests come within it, is tried from what takes fewest workers on;
the first that keeps the promised share is what there must be.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stafette.platform.planner.demand import Demand, Split
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.local_work import expected_ms
from stafette.platform.planner.shape import Shape
from stafette.platform.planner.sizing import Sizer
from stafette.platform.twin.arrivals import Arrival
from stafette.platform.twin.planned import Planned
from stafette.platform.twin.twin import Twin

_GRID_S = 5.0
_ENOUGH = 20  # requests that say what they look like
_AHEAD_S = 10.0  # beside the start-up time: roles have to settle


@dataclass(frozen=True, slots=True)
class Sight:
    """How closely the workers follow the requests: the longer and the evener, the fewer."""

    window_s: float
    dispersion: float
    share: float = 1.0  # of the rate


SIGHTS = (
    Sight(60.0, 0.5, 0.85),
    Sight(60.0, 0.5),
    Sight(40.0, 0.8),
    Sight(30.0, 1.0),
    Sight(20.0, 1.2),
    Sight(10.0, 1.5),
)


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Requests in the order of their times."""

    at_s: Sequence[float]
    prompts: Sequence[int]
    outputs: Sequence[int]

    @classmethod
    def of(cls, arrivals: Iterable[Arrival]) -> "Foreseen":
        rows = [(a.at_s, len(a.make_prompt().token_ids), a.output_tokens) for a in arrivals]
        times, prompts, outputs = zip(*rows, strict=True)
        return cls(times, prompts, outputs)

    def count(self, begin_s: float, end_s: float) -> int:
        return bisect_left(self.at_s, end_s) - bisect_left(self.at_s, begin_s)

    def shape(self, begin_s: float, end_s: float) -> Shape:
        """Return what the requests of a time look like, with the next ones where they are few."""
        first = bisect_left(self.at_s, begin_s)
        last = max(bisect_left(self.at_s, end_s), min(first + _ENOUGH, len(self.at_s)))
        first = min(first, last - _ENOUGH)
        prompts = np.array(self.prompts[max(0, first) : last], dtype=np.float64)
        return Shape(
            prompt_tokens=prompts,
            cached_tokens=np.zeros(len(prompts)),
            answered_prompt_tokens=prompts,
            output_tokens=np.array(self.outputs[max(0, first) : last], dtype=np.float64),
        )


def needs(foreseen: Foreseen, sizer: Sizer, model: EngineModel, sight: Sight) -> list[Split]:
    """Return the workers that are needed, at every moment of the grid."""
    half, found = sight.window_s / 2, []
    for place in range(int(foreseen.at_s[-1] / _GRID_S) + 2):
        begin, end = place * _GRID_S - half, place * _GRID_S + half
        rate = sight.share * foreseen.count(begin, end) / sight.window_s
        shape = foreseen.shape(begin, end)
        demand = Demand(
            rate=rate,
            shape=shape,
            dispersion=sight.dispersion,
            local_ms=expected_ms(model, shape),
        )
        found.append(_fewest(sizer, demand) if rate else Split())
    return found


def _fewest(sizer: Sizer, demand: Demand) -> Split:
    alone = Split(both=1)
    return alone if sizer.keeps(demand, alone) else sizer.apart(demand).split


class Clairvoyant:
    """A twin's `on_tick`: the planner with its sizes given to it."""

    def __init__(self, planned: Planned, needed: Sequence[Split], startup_s: float) -> None:
        self._planned = planned
        self._needed = needed
        self._span = int((startup_s + _AHEAD_S) / _GRID_S) + 1

    @property
    def first(self) -> Mapping[str, int]:
        """Return who is there at the beginning."""
        return self._replicas(0.0)

    def __call__(self, twin: Twin, now: float) -> None:
        for pool, count in self._replicas(now).items():
            self._planned.planner.pins.pin(pool, count, now + 3_600.0)
        self._planned(twin, now)

    def _replicas(self, now: float) -> Mapping[str, int]:
        """Return who must be there from now until somebody asked for now is."""
        place = int(now / _GRID_S)
        ahead = self._needed[place : place + self._span] or [Split()]
        total = max(split.total for split in ahead)
        decode = max(split.decode + split.both for split in ahead)
        return {"prefill": total - min(decode, total), "decode": min(decode, total)}
