"""Says what is wrong with an observation: better no decision than one on nonsense."""

import math
from collections.abc import Collection

from stafette.platform.planner.observation import Finished, Observation

_GAP = 30.0  # intervals without an observation, after which the past is no past of now


class Checks:
    def __init__(self, interval_s: float, pools: Collection[str]) -> None:
        self._gap_s = max(_GAP * interval_s, 60.0)
        self._pools = pools
        self._last: float | None = None
        self.gaps = 0

    def wrong(self, seen: Observation) -> str | None:
        """Return why this observation is not to be used; None: it is."""
        if not math.isfinite(seen.at):
            return f"at = {seen.at}: is no time"
        last, self._last = self._last, seen.at
        if last is not None and seen.at <= last:
            return f"at = {seen.at:g}: the clock has gone back, or stood still, at {last:g}"
        if last is not None and seen.at - last > self._gap_s:
            self.gaps += 1
            return (
                f"at = {seen.at:g}: the clock has jumped, or nobody looked for {seen.at - last:g} s"
            )
        return self._of_numbers(seen) or self._of_pools(seen)

    def _of_numbers(self, seen: Observation) -> str | None:
        if not 0 < seen.window_s < math.inf:
            return f"window_s = {seen.window_s}: must be a number above 0"
        if seen.arrivals < 0 or seen.waiting < 0:
            return f"arrivals = {seen.arrivals}, waiting = {seen.waiting}: must be at least 0"
        for each in seen.finished:
            if (wrong := _of_finished(each)) is not None:
                return wrong
        for begun in seen.started:
            if begun.prompt_tokens < 0 or not 0 <= begun.cached_tokens:
                return f"started = {begun}: must have no number below 0"
        return None

    def _of_pools(self, seen: Observation) -> str | None:
        missing = [name for name in self._pools if name not in seen.pools]
        if missing:
            return f"pools = {sorted(seen.pools)}: nothing is told of {', '.join(missing)}"
        for name, state in seen.pools.items():
            if min(state.target, state.ready, state.starting) < 0:
                return f"pools.{name} = {state}: must have no number below 0"
        return None


def _of_finished(each: Finished) -> str | None:
    if each.prompt_tokens < 0 or each.output_tokens < 0:
        return f"finished = {each}: must have no number below 0"
    for name in ("ttft_ms", "itl_ms"):
        value = getattr(each, name)
        if value is not None and not 0 <= value < math.inf:
            return f"finished.{name} = {value}: must be a number of at least 0"
    return None
