"""What the API answers instead of an answer, in OpenAI's shape.

ApiError               its `status`, `kind` and `code` are what the client sees
├── BadRequest         400: a field has a wrong value, named with its remedy
├── Unauthorized       401: no key, or an unknown one
├── NotFound           404: no such path or model
├── NotAllowed         405: the path has other methods
├── TimedOut           408: the deadline has passed, or the body did not arrive
├── TooLarge           413: the body is longer than max_body_bytes
├── Unsupported        422: understood, but this server or model cannot do it
├── TooMany            429: a limit is reached, or every worker is full; with Retry-After
├── ClientGone         499: nobody is there to read; it only shows in logs and metrics
├── InternalError      500: a bug of ours, or a worker failed this request
└── Unavailable        503: the engine has stopped, or does not take requests now

InvalidSetting         a setting of the frontend is wrong: change it and start again
"""

import json
import math
from collections.abc import Mapping

from stafette.workers.errors import ConfigError, EngineDead, EngineError, RequestError

_SHOWN_CHARS = 120
_RETRY_UNAVAILABLE_S = 1.0


class InvalidSetting(ConfigError):
    """Names the setting that is wrong, the value it has, and what to do."""


class ApiError(Exception):
    status = 500
    kind = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, object]:
        shown = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": shown}

    def body(self) -> bytes:
        return json.dumps(self.to_dict()).encode()


class BadRequest(ApiError):
    status = 400
    kind = "invalid_request_error"


class Unauthorized(BadRequest):
    status = 401
    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"www-authenticate": "Bearer"})


class NotFound(BadRequest):
    status = 404


class NotAllowed(BadRequest):
    status = 405


class TimedOut(ApiError):
    status = 408
    kind = "timeout_error"
    code = "deadline_exceeded"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        # What took too long will take as long again: OpenAI's clients obey this header.
        super().__init__(message, param=param, code=code, headers={"x-should-retry": "false"})


class TooLarge(BadRequest):
    status = 413
    code = "body_too_large"


class Unsupported(BadRequest):
    status = 422
    code = "unsupported"


class TooMany(ApiError):
    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_s: float, *, code: str | None = None) -> None:
        seconds = max(1, math.ceil(retry_after_s))  # the header takes whole seconds
        super().__init__(message, code=code, headers={"retry-after": str(seconds)})
        self.retry_after_s = retry_after_s


class ClientGone(ApiError):
    status = 499
    kind = "client_gone"


class InternalError(ApiError):
    pass


class Unavailable(ApiError):
    status = 503
    code = "unavailable"

    def __init__(self, message: str, retry_after_s: float = _RETRY_UNAVAILABLE_S) -> None:
        headers = {"retry-after": str(max(1, math.ceil(retry_after_s)))}
        super().__init__(message, headers=headers)


def wrong(field: str, value: object, remedy: str) -> BadRequest:
    """Return the error for a field that has a wrong value."""
    return BadRequest(f"{field} = {shown(value)}: {remedy}", param=field, code="invalid_value")


def cannot(field: str, value: object, remedy: str) -> Unsupported:
    """Return the error for a field that asks for what cannot be done here."""
    return Unsupported(f"{field} = {shown(value)}: {remedy}", param=field)


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def as_api_error(error: Exception, fields: Mapping[str, str] | None = None) -> ApiError:
    """Return what the client is told of any error; `fields` gives the API's names of fields."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return _of_request(error, fields or {})
    if isinstance(error, EngineDead):
        return Unavailable(f"the engine has stopped: {error}")
    if isinstance(error, EngineError):
        return InternalError(str(error))
    return InternalError("an error of the server, which its log explains")


def _of_request(error: RequestError, fields: Mapping[str, str]) -> ApiError:
    name, _, rest = error.field.partition(".")
    field = fields.get(name, name if not rest else error.field)
    return wrong(field, error.value, error.remedy)
