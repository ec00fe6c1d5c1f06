"""Plans as plain values, for HTTP and people: those that say the same stand together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from stafette.platform.planner.plan import Plan
from stafette.platform.planner.scaler import Effect


def tell_plans(plans: Sequence[Plan], now: float, last: int) -> list[dict[str, Any]]:
    """Return the last changes of mind, the newest first, each with how long it has stood."""
    told = []
    for _, group in groupby(plans, key=_meaning):
        same = list(group)
        newest = same[-1]
        told.append(
            {
                "age_s": round(now - newest.at, 1),
                "since_s": round(now - same[0].at, 1),
                "plans": len(same),
                **_plain(newest),
            }
        )
    return told[: -last - 1 : -1]


def tell_effects(effects: Sequence[tuple[float, Effect]], now: float) -> list[dict[str, Any]]:
    """Return what became of the last wishes, the newest first."""
    return [
        {"age_s": round(now - at, 1)} | asdict(effect) for at, effect in reversed(list(effects))
    ]


def finite(value: Any) -> Any:
    """Return a value in which what JSON has no number for is None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def _plain(plan: Plan) -> dict[str, Any]:
    told: dict[str, Any] = finite(asdict(plan))
    del told["at"]
    return told


def _meaning(plan: Plan) -> tuple[Any, ...]:
    decided_by = plan.explanation.decided_by
    return sorted(plan.replicas.items()), plan.flips, plan.release, plan.held, decided_by
