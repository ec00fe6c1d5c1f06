"""The parsers by name, and which one a model's chat template asks for."""

from collections.abc import Mapping

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.frontend.parsing.hermes import HermesParser
from stafette.platform.frontend.parsing.llama3_json import Llama3JsonParser
from stafette.platform.frontend.parsing.mistral import MistralParser
from stafette.platform.frontend.parsing.pythonic import PythonicParser
from stafette.platform.frontend.parsing.qwen import QwenParser
from stafette.platform.frontend.parsing.reasoning import BEGIN
from stafette.platform.frontend.parsing.tool_parser import ToolParser

TOOL_PARSERS: Mapping[str, type[ToolParser]] = {
    "hermes": HermesParser,
    "llama3_json": Llama3JsonParser,
    "mistral": MistralParser,
    "pythonic": PythonicParser,
    "qwen": QwenParser,
}
REASONING_PARSERS = ("deepseek_r1", "qwen3")

# What a template writes only if its model speaks that form; the first that is found decides.
_SIGNS = {
    "<function=": "qwen",
    "<tool_call>": "hermes",
    "[TOOL_CALLS]": "mistral",
    "[AVAILABLE_TOOLS]": "mistral",
    "<|python_start|>": "pythonic",
    "func_name1(": "pythonic",
    "<|python_tag|>": "llama3_json",
    '{"name": function name': "llama3_json",
}


def tool_parser(name: str, template: str) -> type[ToolParser] | None:
    """Return the parser of this name; `auto`: as the template has it; `none`: none.

    A template that knows no tools gets Hermes' form, which the frontend then explains to the model.
    """
    if name == "none":
        return None
    if name == "auto":
        name = next((known for sign, known in _SIGNS.items() if sign in template), "hermes")
    if name not in TOOL_PARSERS:
        raise InvalidSetting("tool_parser", name, f"must be auto, none, {', '.join(TOOL_PARSERS)}")
    return TOOL_PARSERS[name]


def reasoning_parser(name: str, template: str) -> str | None:
    """Return which form of reasoning is read: one of REASONING_PARSERS, or None."""
    if name == "none":
        return None
    if name == "auto":
        if BEGIN not in template and "</think>" not in template:
            return None
        return "qwen3" if "enable_thinking" in template else "deepseek_r1"
    if name not in REASONING_PARSERS:
        remedy = f"must be auto, none, {', '.join(REASONING_PARSERS)}"
        raise InvalidSetting("reasoning_parser", name, remedy)
    return name
