"""Puts a decision into words and numbers: what was seen, what is expected, what decided."""

from collections.abc import Mapping

from stafette.platform.planner.beliefs import Beliefs
from stafette.platform.planner.pins import Pin
from stafette.platform.planner.plan import Explanation
from stafette.platform.planner.replicas import Wish
from stafette.platform.planner.situation import Situation
from stafette.workers.service.standing import ROLES


def explain(now: Situation, wish: Wish, beliefs: Beliefs, pinned: Mapping[str, Pin]) -> Explanation:
    pins = tuple(
        f"{pin.pool} is pinned to {pin.replicas} for {pin.until - now.at:.0f} s more"
        for pin in pinned.values()
    )
    return Explanation(
        observed=_observed(now),
        predicted={"rate_middle": now.rates.middle, "rate_upper": now.rates.upper},
        capacity=dict(wish.capacity),
        needed={role: getattr(wish.needed, role) for role in ROLES},
        decided_by="pin" if pins else wish.decided_by,
        notes=(f"forecast by {now.rates.model}", *wish.notes, *beliefs.doubts(), *pins),
    )


def _observed(now: Situation) -> dict[str, float]:
    return {
        "rate": now.rates.now,
        "dispersion": now.rates.dispersion,
        "prompt_tokens": now.shape.mean_prompt,
        "output_tokens": now.shape.mean_output,
        "hit_rate": now.shape.hit_rate,
        "running": now.live.running,
        "queued_tokens": now.live.queued_tokens,
        "waiting": now.observation.waiting,
        "ttft_ms": now.kept.ttft_ms,
        "itl_ms": now.kept.itl_ms,
        "late_share": now.kept.late_share,
    }
