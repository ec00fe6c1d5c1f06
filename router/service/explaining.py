"""What a router tells of its last decisions: the answer of GET /v1/router/explain.

It needs a `KvRouter` and the query, so that any server that has a router can mount it.
"""

from collections.abc import Mapping
from dataclasses import asdict
from urllib.parse import parse_qs

from stafette.router.errors import InvalidValue
from stafette.router.router import KvRouter

PATH = "/v1/router/explain"
_MOST = 1_000


def explain(router: KvRouter, query: str, now: float) -> dict[str, object]:
    """Return the decisions that a query asks for: last=N, the newest first, or request=ID.

    `now` is on the router's clock.
    """
    asked = _read(query)
    request_id = asked.get("request")
    if request_id is not None:
        found = decision_of(router, request_id, now)
        if found is None:
            remedy = f"is not among the last {len(router.decisions)} decisions that are kept"
            raise InvalidValue("request", request_id, remedy)
        decisions = [found]
    else:
        decisions = [_shown(one.to_dict(), now) for one in router.explain(_last(asked))]
    return {"decisions": decisions, "counters": asdict(router.decisions.counters)}


def decision_of(router: KvRouter, request_id: str, now: float) -> dict[str, object] | None:
    decision = router.decisions.of(request_id)
    return None if decision is None else _shown(decision.to_dict(), now)


def _shown(decision: dict[str, object], now: float) -> dict[str, object]:
    """A monotonic clock's time means nothing elsewhere: tell how long ago it was."""
    at = decision.pop("at")
    assert isinstance(at, float | int)
    return decision | {"age_s": max(0.0, now - at)}


def _read(query: str) -> Mapping[str, str]:
    found = {}
    for name, values in parse_qs(query, keep_blank_values=True).items():
        if name not in ("last", "request"):
            raise InvalidValue(name, values[-1], "is not known; known: last, request")
        found[name] = values[-1]
    return found


def _last(asked: Mapping[str, str]) -> int:
    text = asked.get("last", "10")
    if not text.isdecimal() or not 1 <= int(text[:9]) <= _MOST:
        raise InvalidValue("last", text, f"must be a whole number in 1..{_MOST}")
    return int(text)
