"""What the planner saw, foresaw and wanted, moment by moment, as this frontend heard it.

The planner keeps its plans by itself, but those that say the same stand together there.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from stafette.platform.frontend.errors import ApiError

_PLANS = 12  # the last changes of mind that a page shows
_EFFECTS = 8
_OBSERVED = ("rate", "waiting", "ttft_ms", "itl_ms", "late_share")


class TellsPlans(Protocol):
    async def overview(self, last: int) -> dict[str, Any]:
        """Return what GET /v1/planner does; an ApiError when the planner does not answer."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What a request is to keep, in milliseconds."""

    ttft_ms: float
    itl_ms: float
    share: float  # of the requests, 0..1


class PlannerLog:
    """`kept` is how many moments are remembered."""

    def __init__(self, planner: TellsPlans, kept: int) -> None:
        self.promise: Promise | None = None
        self._planner = planner
        self._moments: deque[tuple[int, dict[str, Any]]] = deque(maxlen=kept)
        self._told: dict[str, Any] = {}
        self._version = 0

    async def look(self, version: int, at: float) -> None:
        """Ask the planner; where it does not answer, that is what there is to tell."""
        self._version = version
        try:
            told = await self._planner.overview(_PLANS)
        except ApiError as error:
            self._told = {"mode": self._told.get("mode", "on"), "silent": str(error)}
            return
        self.promise = _promise(told.get("slo"))
        for plan in told["plans"]:
            plan["at"] = round(at - plan.pop("age_s"), 1)
            plan["since"] = round(at - plan.pop("since_s"), 1)
        effects = [{**each, "at": round(at - each["age_s"], 1)} for each in told["effects"]]
        self._told = {**told, "effects": effects[:_EFFECTS]}
        self._moments.append((version, _moment(told, at)))

    def since(self, version: int) -> dict[str, Any]:
        """Return the moments behind a reader's version, and the plans if they are newer."""
        moments = [moment for added, moment in self._moments if added > version]
        shown: dict[str, Any] = {"moments": moments}
        if self._version > version:
            shown["told"] = self._told
        return shown


def _moment(told: Mapping[str, Any], at: float) -> dict[str, Any]:
    plans = told["plans"]
    explanation: Mapping[str, Any] = plans[0]["explanation"] if plans else {}
    observed, predicted = explanation.get("observed", {}), explanation.get("predicted", {})
    return {
        "at": at,
        **{name: observed.get(name) for name in _OBSERVED},
        "middle": predicted.get("rate_middle"),
        "upper": predicted.get("rate_upper"),
        "pools": {
            name: [pool["planned"], pool["target"], pool["ready"]]
            for name, pool in told["pools"].items()
        },
    }


def _promise(slo: Mapping[str, float] | None) -> Promise | None:
    """A request keeps it in both; the share is the smaller of the two that are promised."""
    if slo is None:
        return None
    percentile = min(slo["ttft_percentile"], slo["itl_percentile"])
    return Promise(slo["ttft_ms"], slo["itl_ms"], percentile / 100.0)
