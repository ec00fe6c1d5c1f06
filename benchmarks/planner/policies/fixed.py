"""A fleet of one size, chosen by somebody who knows what comes."""

from stafette.platform.planner.demand import Demand, Split
from stafette.platform.planner.sizing import Sizer
from stafette.platform.twin.twin import Twin


class Fixed:
    def __call__(self, twin: Twin, now: float) -> None:
        """Change nothing."""


def sized_for(sizer: Sizer, demand: Demand) -> Split:
    """Return the workers that a rate takes, with queues and at the promised percentiles."""
    return sizer.apart(demand).split
