"""Renders chat templates as Hugging Face does: sandboxed Jinja with its filters and functions.

Jinja is imported when the first template is rendered.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from stafette.workers.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from jinja2 import Environment, Template

Message = Mapping[str, Any]

# What Python raises when a template does with a value what the value does not allow.
_TEMPLATE_FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
# Every name under which clients send a model's reasoning; templates read the first or the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def choose_template(templates: Mapping[str, str], has_tools: bool) -> str:
    """Return the template's text, out of those the model has."""
    name = "tool_use" if has_tools and "tool_use" in templates else "default"
    if name not in templates:
        remedy = "this model has no default chat template: send a plain prompt instead"
        raise RequestError("messages", sorted(templates), remedy)
    return templates[name]


def render(template: str, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
    """Return the prompt. RequestError when the template refuses the messages."""
    from jinja2 import TemplateError

    compiled = _compile(template)
    try:
        plain = [_with_reasoning(message) for message in _plain(list(messages))]
        return compiled.render(messages=plain, **_plain(dict(variables)))
    except TemplateError as error:
        remedy = f"the model's chat template refuses it: {error.message}"
        raise RequestError("messages", list(messages), remedy) from error
    except _TEMPLATE_FAULTS as error:
        remedy = f"does not fit the model's chat template: {error}"
        raise RequestError("messages", list(messages), remedy) from error


@functools.lru_cache(8)
def _compile(template: str) -> "Template":
    from jinja2 import TemplateSyntaxError

    environment = _environment()
    try:
        code = environment.compile(template)
    except TemplateSyntaxError as error:
        remedy = f"is not a template: {error.message}, in line {error.lineno}"
        raise CheckpointError("chat_template", template, remedy) from error
    # As `from_string`, but with globals of its own: a chain of dictionaries is slow to copy.
    return environment.template_class.from_code(environment, code, dict(environment.globals))


@functools.cache
def _environment() -> "Environment":
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    extensions = [loopcontrols, _generation_tag()]
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _generation_tag() -> Any:
    """Return the extension that reads {% generation %}, which trainers put round answers."""
    from jinja2.ext import Extension
    from jinja2.nodes import Node
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _with_reasoning(message: Any) -> Any:
    if not isinstance(message, dict):
        raise TypeError(f"a message must be an object, not {message!r}")
    given = (message[name] for name in _REASONING if message.get(name) is not None)
    reasoning = next(given, None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """Rebuild `value` of JSON's types: a template is the model's code, and gets data only."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str):  # an enum's member, say
        return str.__str__(value)
    if type(value) is dict or isinstance(value, Mapping):  # the check of an ABC is a slow one
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"
