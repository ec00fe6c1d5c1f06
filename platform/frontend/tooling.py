"""What a request's tools come to: what the model is told, bound to, and how it is read."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stafette.platform.frontend.errors import cannot, wrong
from stafette.platform.frontend.parsing.forced import NamedParser, RequiredParser
from stafette.platform.frontend.parsing.tool_parser import ToolParser, Tools
from stafette.workers.sampling.params import StructuredOutput

_ANYTHING: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """`mode` is none, auto, required or named; `name` is the tool's, when it is named."""

    mode: str = "none"
    name: str = ""
    parallel: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """No tools at all, unless told otherwise."""

    shown: list[dict[str, Any]] = field(default_factory=list)  # to the model
    structured: StructuredOutput | None = None
    new_parser: Callable[[], ToolParser] | None = None
    needs_special_tokens: bool = False
    one_call: bool = False


def plan_tools(
    tools: Sequence[dict[str, Any]], choice: ToolChoice, parser: type[ToolParser] | None
) -> ToolUse:
    """Return how these tools, in OpenAI's shape, are used."""
    schemas = _schemas(tools)
    if choice.mode in ("required", "named") and not tools:
        raise wrong("tool_choice", choice.name or choice.mode, "needs tools: add them")
    if not tools or choice.mode == "none":
        return ToolUse()
    if choice.mode == "named":
        return _named(tools, schemas, choice)
    if choice.mode == "required":
        return ToolUse(
            shown=list(tools),
            structured=_structured(required_schema(schemas, choice.parallel)),
            new_parser=partial(RequiredParser, schemas),
            one_call=not choice.parallel,
        )
    if parser is None:
        remedy = "calls are not read here (tool_parser=none): require one, or name a tool"
        raise cannot("tool_choice", "auto", remedy)
    return ToolUse(
        shown=list(tools),
        new_parser=partial(parser, schemas),
        needs_special_tokens=parser.needs_special_tokens,
        one_call=not choice.parallel,
    )


def required_schema(schemas: Tools, parallel: bool) -> dict[str, Any]:
    """Return the schema of a list of calls of these tools, at least one."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "parameters": {"$ref": _pointer(name)}},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for name in schemas
    ]
    most = {} if parallel else {"maxItems": 1}
    parts = {name: _moved(schema, _pointer(name)) for name, schema in schemas.items()}
    return {"type": "array", "minItems": 1, **most, "items": {"anyOf": calls}, "$defs": parts}


def _named(tools: Sequence[dict[str, Any]], schemas: Tools, choice: ToolChoice) -> ToolUse:
    if choice.name not in schemas:
        known = ", ".join(schemas)
        raise wrong("tool_choice.function.name", choice.name, f"is none of the tools: {known}")
    return ToolUse(
        shown=list(tools),
        structured=_structured(schemas[choice.name]),
        new_parser=partial(NamedParser, schemas, choice.name),
    )


def _schemas(tools: Sequence[dict[str, Any]]) -> dict[str, Mapping[str, Any]]:
    schemas: dict[str, Mapping[str, Any]] = {}
    for place, tool in enumerate(tools):
        name = tool["function"]["name"]
        if name in schemas:
            raise wrong(f"tools[{place}].function.name", name, "is there twice: rename one")
        schemas[name] = tool["function"].get("parameters") or _ANYTHING
    return schemas


def _structured(schema: Mapping[str, Any]) -> StructuredOutput:
    return StructuredOutput(kind="json_schema", value=json.dumps(schema))


def _pointer(name: str) -> str:
    return f"#/$defs/{name}"


def _moved(schema: Any, to: str) -> Any:
    """Return a schema whose references to its own parts hold at its new place."""
    if isinstance(schema, Mapping):
        moved = {key: _moved(value, to) for key, value in schema.items()}
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            moved["$ref"] = to + reference[1:]
        return moved
    return [_moved(item, to) for item in schema] if isinstance(schema, list) else schema
