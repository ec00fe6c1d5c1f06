"""What the service answers when it does not do what it was asked, and what the client can do.

RouterError            the router's own, which have a status and a code here
└── ServiceError       each names a field, its value and the remedy
    ├── MalformedHead    400  no HTTP/1.1, or far too much of it
    ├── Unauthorized     401  no token, or a wrong one: send the service's
    ├── UnknownPath      404
    ├── WrongMethod      405
    ├── BodyTooSlow      408
    ├── StaleEpoch       409  an older life of that worker speaks: it must not
    ├── ClockBackwards   409  the worker's clock went back: send what is newer
    ├── EventGap         409  batches are missing: send them, or a snapshot
    ├── BodyTooLarge     413
    ├── UnsupportedType  415
    ├── TooBusy          429  more requests are under way than are taken: come again
    └── Stopping         503  ask another one
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from stafette.kvtransfer.errors import InvalidValue, MalformedMessage
from stafette.router.errors import (
    IncompatibleCache,
    NoCandidate,
    Rejected,
    RouterError,
    UnknownReservation,
    UnknownTarget,
)

_SHOWN_CHARS = 120
_MAX_TEXT = 2_000
_MOST_REASONS = 32
_RETRY_S = 1.0
_UNREAD = ("malformed_head", "body_too_slow", "body_too_large")


class ServiceError(RouterError):
    status = 400
    code = "invalid_value"
    retry_after_s: float | None = None

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(field, value, remedy)
        self.field = field
        self.value = value
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.field} = {shown(self.value)}: {self.remedy}"


class Unauthorized(ServiceError):
    status = 401
    code = "unauthorized"


class MalformedHead(ServiceError):
    code = "malformed_head"


class UnknownPath(ServiceError):
    status = 404
    code = "unknown_path"


class WrongMethod(ServiceError):
    status = 405
    code = "wrong_method"


class BodyTooSlow(ServiceError):
    status = 408
    code = "body_too_slow"


class StaleEpoch(ServiceError):
    status = 409
    code = "stale_epoch"


class ClockBackwards(ServiceError):
    status = 409
    code = "clock_backwards"


class EventGap(ServiceError):
    status = 409
    code = "event_gap"


class BodyTooLarge(ServiceError):
    status = 413
    code = "body_too_large"


class UnsupportedType(ServiceError):
    status = 415
    code = "unsupported_type"


class TooBusy(ServiceError):
    status = 429
    code = "too_busy"
    retry_after_s = _RETRY_S


class Stopping(ServiceError):
    status = 503
    code = "stopping"
    retry_after_s = _RETRY_S


class Told(NamedTuple):
    """An error as the client sees it."""

    status: int
    document: dict[str, object]
    retry_after_s: float | None = None

    @property
    def code(self) -> str:
        error = self.document["error"]
        assert isinstance(error, dict)
        return str(error["code"])

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        if self.status == 401:
            return (("www-authenticate", "Bearer"),)
        if self.retry_after_s is None:
            return ()
        return (("retry-after", str(max(1, math.ceil(self.retry_after_s)))),)

    @property
    def closes(self) -> bool:
        """Whether what is left of the request would have to be read, perhaps without end."""
        return self.code in _UNREAD


def told(error: Exception) -> Told:
    """Return what the client is told of any error."""
    match error:
        case ServiceError():
            about = _named(error.field, error.value, error.remedy)
            return _told(error.status, error.code, error, about, error.retry_after_s)
        case InvalidValue():
            about = _named(error.field, error.value, error.remedy)
            return _told(400, "invalid_value", error, about)
        case MalformedMessage():
            about = _named(error.where, None, f"must be {error.expected}")
            return _told(400, "malformed", error, about)
        case RouterError():
            return _of_router(error)
    fault = {"code": "internal", "message": "a fault of ours, which the log explains"}
    return Told(500, {"error": fault})


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def _of_router(error: RouterError) -> Told:
    match error:
        case UnknownTarget(target=target):
            about = _named("worker", target, "register it before it is used")
            return _told(404, "unknown_worker", error, about)
        case UnknownReservation(request_id=request_id):
            remedy = "it was freed before, has expired, or was never placed: nothing is to be done"
            about = _named("request_id", request_id, remedy)
            return _told(404, "unknown_reservation", error, about)
        case IncompatibleCache():
            remedy = f"give both the same: the router has {error.ours}"
            about = _named(error.field.split()[-1], error.theirs, remedy)
            return _told(409, "incompatible_cache", error, about)
        case NoCandidate():
            reasons = dict(list(error.reasons.items())[:_MOST_REASONS])
            remedy = "ask for less, register a worker that can take it, or come again"
            about = _named("workers", len(error.reasons), remedy) | {"reasons": reasons}
            return _told(409, "no_candidate", error, about, _RETRY_S)
        case Rejected():
            about = _named("deadline_s", None, f"come again in {error.retry_after_s:.1f} s")
            return _told(429, "rejected", error, about, error.retry_after_s)
    return _told(400, "refused", error, {})


def _named(field: str, value: object, remedy: str) -> dict[str, object]:
    """Keep a value as it is only where any client can read it again."""
    if not (value is None or isinstance(value, bool | str)):
        is_small = isinstance(value, int) and abs(value) < 1 << 53
        value = value if is_small else shown(value)
    return {"field": field, "value": value, "remedy": remedy}


def _readable(value: object) -> object:
    """Texts from outside may be long, and no Unicode."""
    if not isinstance(value, str):
        return value
    return value[:_MAX_TEXT].encode("utf-8", "backslashreplace").decode()


def _told(
    status: int,
    code: str,
    error: Exception,
    about: Mapping[str, object],
    retry_after_s: float | None = None,
) -> Told:
    words = {"code": code, "message": str(error), **about}
    told_of: dict[str, object] = {name: _readable(value) for name, value in words.items()}
    if retry_after_s is not None:
        told_of["retry_after_s"] = retry_after_s
    return Told(status, {"error": told_of}, retry_after_s)
