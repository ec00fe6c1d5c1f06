"""A fleet of one size, chosen by somebody who knows what comes."""

from stafette.platform.planner.demand import Demand, Split
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.local_work import expected_ms
from stafette.platform.planner.shape import Shape
from stafette.platform.planner.sizing import Sizer
from stafette.platform.twin.twin import Twin

_DISPERSION = 1.2  # of arrivals: a little more than random ones have


class Fixed:
    def __call__(self, twin: Twin, now: float) -> None:
        """Change nothing."""


def sized_for(sizer: Sizer, model: EngineModel, rate: float, shape: Shape) -> Split:
    """Return the workers that a rate takes, with queues and at the promised percentiles."""
    local_ms = expected_ms(model, shape)
    demand = Demand(rate=rate, shape=shape, dispersion=_DISPERSION, local_ms=local_ms)
    return sizer.apart(demand).split
