"""The router's last decisions, short enough to be told every second.

The page asks GET /v1/router/explain?request=ID for the rest of one when somebody opens it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 12
_MOST_REASONS = 4

Decision = Mapping[str, Any]


def short(decisions: Sequence[Decision], now: float) -> list[dict[str, Any]]:
    """Return the newest first; times are on the clock that `now` is of."""
    return [_short(decision, now) for decision in decisions]


def _short(decision: Decision, now: float) -> dict[str, Any]:
    chosen = decision["chosen"]
    options = decision["options"]
    own = next((o for o in options if all(o[k] == v for k, v in chosen.items())), None)
    other = next((option for option in options if option is not own), None)
    return {
        "id": decision["request_id"],
        # A tenth is as exact as a page needs, and keeps what did not change the same.
        "at": round(now - decision["age_s"], 1),
        "policy": decision["policy"],
        "prompt": decision["prompt_tokens"],
        "best_cached": decision["best_cached_tokens"],
        "margin": _rounded(decision["margin"]),
        "predicted": _numbers(decision["predicted"]),
        "actual": _numbers(decision["actual"]),
        "regret": _rounded(decision["regret_ms"]),
        "candidates": decision["num_candidates"],
        "left_out": _reasons(decision),
        "chosen": _option(own) if own is not None else chosen,
        "other": None if other is None else _option(other),
    }


def _option(option: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "decode": option["decode"],
        "prefill": option["prefill"],
        "source": option["source"],
        "cost": _rounded(option["cost"]),
        "ttft_ms": _rounded(option["ttft_ms"]),
        "cached": option["cached_tokens"],
        "terms": _numbers(option["terms"]),
    }


def _reasons(decision: Decision) -> dict[str, int]:
    """Return how many were left out for which reason, the most frequent ones."""
    counts = Counter(str(reason) for reason in decision["left_out"].values())
    return dict(counts.most_common(_MOST_REASONS))


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _rounded(value) for name, value in values.items()}


def _rounded(value: Any) -> Any:
    return round(value, 2) if isinstance(value, float) else value
