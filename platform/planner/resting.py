"""Who stays while nobody asks: as few as the promise can afford when the load comes back.

It comes back as it was before, and whoever is missing then takes a start-up time to be there.
"""

from itertools import product

from stafette.platform.planner.demand import Demand, Split
from stafette.platform.planner.sizing import Sizer


def least_at_rest(sizer: Sizer, demand: Demand, startup_s: float, may_be_late: float) -> Split:
    """Return the fewest workers with which no more requests than that are late at a return."""
    full = sizer.apart(demand).split
    fewer = product(range(1, full.prefill + 1), range(1, full.decode + 1))
    candidates = [Split(), *(Split(prefill=p, decode=d) for p, d in fewer)]
    for split in sorted(candidates, key=lambda split: (split.total, split.prefill)):
        if demand.rate * startup_s * _late(sizer, demand, split) <= may_be_late:
            return split
    return full


def _late(sizer: Sizer, demand: Demand, split: Split) -> float:
    return sizer.late_share(demand, split) if split.total else 1.0
