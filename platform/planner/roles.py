"""The fast lever: which worker has which role, decided anew within a second.

As long as the roles that there are keep the promise, they stay. When they do not, the workers are
shared out anew with what is to spare on both sides, so that the next change is far.
"""

from collections import Counter
from collections.abc import Sequence

from stafette.platform.planner.demand import Demand, Split
from stafette.platform.planner.observation import WorkerState
from stafette.platform.planner.plan import RoleFlip
from stafette.platform.planner.sizing import MOST_TOGETHER, Sizer
from stafette.workers.service.standing import ROLES, Role

_BETTER = 0.8
_HOPELESS = 1e6  # infinite is no worse than infinite
_TURN_S = 60.0  # between two changes of all roles
_REST_S = 10.0  # a worker keeps a new role at least so long


class Roles:
    def __init__(self, sizer: Sizer) -> None:
        self.sizer = sizer
        self._changed_at: dict[str, float] = {}
        self._turned_at = float("-inf")  # from workers apart to workers that do both, or back

    def decide(self, at: float, workers: Sequence[WorkerState], demand: Demand) -> list[RoleFlip]:
        """Return the changes of role. `workers` are those that serve, and will go on to."""
        there = split_of(workers)
        if not there.total or self._good_enough(there, demand):
            return []
        wanted = self.best(there.total, demand)
        if serves(there) and not self._worth_it(there, wanted, demand):
            return []
        if bool(wanted.both) != bool(there.both):
            if serves(there) and at - self._turned_at < _TURN_S:
                return []
            self._turned_at = at
        rested = [w for w in workers if at - self._changed_at.get(w.name, -_REST_S) >= _REST_S]
        if not serves(there):
            rested = list(workers)  # better one that has just changed than nobody
        flips = _flips(rested, there, wanted)
        for flip in flips:
            self._changed_at[flip.worker] = at
        names = {w.name for w in workers}
        self._changed_at = {n: t for n, t in self._changed_at.items() if n in names}
        return flips

    def best(self, count: int, demand: Demand) -> Split:
        """Return how so many workers are shared out best."""
        if count == 1:
            return Split(both=1)
        needed = self.sizer.apart(demand).split
        apart = share_out(count, needed)
        if needed.total <= count:
            return apart
        together = Split(both=count)
        if count <= MOST_TOGETHER and self.sizer.keeps(demand, together):
            return together
        return apart

    def _worth_it(self, there: Split, wanted: Split, demand: Demand) -> bool:
        """Return whether the change helps clearly; where nothing is good enough, it may not."""
        if self._good_enough(wanted, demand):
            return True
        return self._misses(wanted, demand) < _BETTER * self._misses(there, demand)

    def _misses(self, split: Split, demand: Demand) -> float:
        """Return how many times the limit the worse of the two promises takes."""
        speeds, slo = self.sizer.speeds(demand, split), self.sizer.slo
        full = demand.least_decode / max(split.decode + split.both, 1)
        worst = max(speeds.ttft_ms / slo.ttft_ms, speeds.itl_ms / slo.itl_ms, full)
        return min(worst, _HOPELESS)

    def _good_enough(self, there: Split, demand: Demand) -> bool:
        if not serves(there):
            return False
        if there.decode + there.both < demand.least_decode:
            return False
        return self.sizer.keeps(demand, there)


def serves(there: Split) -> bool:
    """Return whether these workers can answer a request at all."""
    return there.decode + there.both > 0


def split_of(workers: Sequence[WorkerState]) -> Split:
    found = Counter(worker.role for worker in workers)
    return Split(**{role: found[role] for role in ROLES})


def share_out(count: int, needed: Split) -> Split:
    """Divide workers as they are needed: each role gets its share of plenty, and of want."""
    wanted = needed.prefill + needed.decode
    prefill = round(count * needed.prefill / wanted) if wanted else count // 2
    if count >= wanted:
        prefill = min(max(prefill, needed.prefill), count - needed.decode)
    prefill = min(max(prefill, 1), count - 1)
    return Split(prefill=prefill, decode=count - prefill)


def _flips(workers: Sequence[WorkerState], there: Split, wanted: Split) -> list[RoleFlip]:
    """Change those who lose least by it."""
    lacking: dict[Role, int] = {r: getattr(wanted, r) - getattr(there, r) for r in ROLES}
    flips = []
    for worker in sorted(workers, key=_busy):
        if lacking[worker.role] >= 0:
            continue
        role = max(ROLES, key=lambda r: lacking[r])
        if lacking[role] <= 0:
            break
        lacking[worker.role] += 1
        lacking[role] -= 1
        flips.append(RoleFlip(worker.name, worker.role, role))
    return flips


def _busy(worker: WorkerState) -> tuple[int, int, str]:
    return worker.running + worker.waiting, worker.queued_tokens, worker.name
