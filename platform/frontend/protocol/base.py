"""What every request has in common, and how a wrong one is explained."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stafette.platform.frontend.errors import BadRequest, shown
from stafette.workers.request import MAX_PRIORITY

MAX_DEADLINE_S = 86_400.0
Body = TypeVar("Body", bound="RequestBody")
_PLAINER = {
    "Input should be ": "must be ",
    "Value error, ": "",
    "a valid array": "a list",
    "a valid integer": "a whole number",
    "a valid ": "a ",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}
Name = Annotated[str, Field(min_length=1, max_length=256)]


class Fields(BaseModel):
    """Types are strict, unknown fields are ignored, as OpenAI does."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class RequestBody(Fields):
    """A request names its model; left out, it is the one that is served."""

    model: str | None = None


class RoutingFields(Fields):
    """How a request is placed. None of these is OpenAI's, except `prompt_cache_key`."""

    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = Field(
        0, description="Lower is served earlier."
    )
    deadline: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)] | None = Field(
        None, description="Seconds within which the answer must have ended."
    )
    session: Name | None = Field(
        None, description="Requests of one session like to be served by one worker."
    )
    prompt_cache_key: Name | None = Field(None, description="Stands in for `session`.")
    cache_salt: Name | None = Field(
        None, description="Requests with different salts never share cached prefixes."
    )
    lora: Name | None = Field(None, description="An adapter; naming it in `model` does the same.")
    explain: bool = Field(
        False, description="Return in `placement` why the request went to which worker."
    )


class RoutedBody(RequestBody, RoutingFields):
    """What every request for tokens has."""


def parse(body: bytes, kind: type[Body]) -> Body:
    """Return the request in a body; BadRequest names the field that is wrong."""
    try:
        return kind.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise _explained(error, body or b"{}") from None


def _explained(error: ValidationError, body: bytes) -> BadRequest:
    faults = error.errors(include_url=False)
    if faults[0]["type"] == "json_invalid":
        return BadRequest(f"the body is not JSON: {faults[0]['msg']}", code="invalid_json")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):  # pydantic could read it: we cannot tell where it is wrong
        document = None
    by_path: dict[str, list[Any]] = {}
    for fault in faults:
        by_path.setdefault(_path(fault, document), []).append(fault)
    # Of a value that may be this or that, the branch that got furthest is what was meant.
    path = max(
        by_path, key=lambda each: (each.count(".") + each.count("["), -_place(by_path, each))
    )
    fault = by_path[path][0]
    reasons = dict.fromkeys(_reason(each) for each in by_path[path])
    message = f"{path or 'body'}{_value(fault)}: {_either(list(reasons))}"
    return BadRequest(message, param=path or None, code="invalid_value")


def _place(by_path: Mapping[str, object], path: str) -> int:
    return list(by_path).index(path)


def _path(fault: Mapping[str, Any], document: Any) -> str:
    """Return where the fault is, such as messages[0].role.

    Pydantic also puts names of types into it, which lead nowhere in the document.
    """
    path, here = "", document
    last = len(fault["loc"]) - 1
    for place, step in enumerate(fault["loc"]):
        missing = fault["type"] == "missing" and place == last
        if isinstance(here, Mapping) and (step in here or missing):
            path += f".{step}" if path else str(step)
            here = here.get(step)
        elif isinstance(here, Sequence) and isinstance(step, int) and step < len(here):
            path += f"[{step}]"
            here = here[step]
    return f"{path}.{_tag_of(fault)}" if fault["type"].startswith("union_tag") else path


def _tag_of(fault: Mapping[str, Any]) -> str:
    """Return the field that tells what kind of object this is: `role`, or else `type`."""
    said = str(fault["ctx"]["discriminator"])
    return said.strip("'") if said.startswith("'") else "type"


def _reason(fault: Mapping[str, Any]) -> str:
    match fault["type"]:
        case "missing" | "union_tag_not_found":
            return "is required"
        case "union_tag_invalid":
            return f"must be one of {fault['ctx']['expected_tags']}"
    message = str(fault["msg"])
    for words, plainer in _PLAINER.items():
        message = message.replace(words, plainer)
    return message[0].lower() + message[1:]


def _either(reasons: list[str]) -> str:
    first, *others = reasons
    return " or ".join([first, *(other.removeprefix("must be ") for other in others)])


def _value(fault: Mapping[str, Any]) -> str:
    if fault["type"] in ("missing", "union_tag_not_found"):
        return ""
    value = fault["ctx"]["tag"] if fault["type"] == "union_tag_invalid" else fault["input"]
    return f" = {shown(value)}"
