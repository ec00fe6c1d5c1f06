"""Calls of all of Qwen's models: Qwen 2.5 and 3 write Hermes' JSON, Qwen3-Coder writes tags.

<tool_call>
<function=weather>
<parameter=city>
Paris
</parameter>
</function>
</tool_call>
"""

import json
from collections.abc import Mapping
from typing import Any

from stafette.platform.frontend.parsing.hermes import HermesParser
from stafette.platform.frontend.parsing.json_value import parsed
from stafette.platform.frontend.parsing.markers import before_marker

_LONGEST_NAME = 256
_FUNCTION, _PARAMETER = "<function=", "<parameter="
_FUNCTION_END, _PARAMETER_END = "</function>", "</parameter>"


class QwenParser(HermesParser):
    _function = ""
    _parameter = ""
    _num_parameters = 0

    def _open(self) -> None:
        self._mode = self._in_call_of_either_form

    def _in_call_of_either_form(self) -> bool:
        stripped = self._buffer.lstrip()
        if not stripped:
            return False
        if stripped[0] != "<":
            super()._open()
            return True
        self._skip_blank()
        self._mode = self._function_name
        return True

    def _function_name(self) -> bool:
        name = self._tag(_FUNCTION)
        if name is None:
            return False
        if not name:
            self._show_instead("")
            return True
        self._function, self._num_parameters = name, 0
        self._begin_call(name)
        self._add_arguments("{")
        self._mode = self._parameters
        return True

    def _parameters(self) -> bool:
        """Read what stands between two parameters, or ends the function."""
        if not self._skip_blank():
            return False
        if self._buffer.startswith(_PARAMETER[: len(self._buffer)]):
            return self._parameter_name()
        if self._buffer.startswith(_FUNCTION_END):
            self._cut(len(_FUNCTION_END))
        elif _FUNCTION_END.startswith(self._buffer):
            return False
        self._add_arguments("}")  # also when the model forgot to close it
        self._mode = self._after_call
        return True

    def _parameter_name(self) -> bool:
        name = self._tag(_PARAMETER)
        if name is None:
            return False
        if not name:
            self._add_arguments("}")
            self._mode = self._after_call
            return True
        self._parameter = name
        self._mode = self._parameter_value
        return True

    def _parameter_value(self) -> bool:
        length, found = before_marker(self._buffer, _PARAMETER_END)
        if not found:
            return False
        value = self._cut(length).removeprefix("\n").removesuffix("\n")
        self._cut(len(_PARAMETER_END))
        self._add_parameter(value)
        self._mode = self._parameters
        return True

    def _add_parameter(self, value: str) -> None:
        schema = self._schema_of(self._parameter)
        comma = ", " if self._num_parameters else ""
        self._num_parameters += 1
        shown = json.dumps(typed(value, schema), ensure_ascii=False)
        name = json.dumps(self._parameter, ensure_ascii=False)
        self._add_arguments(f"{comma}{name}: {shown}")

    def _schema_of(self, parameter: str) -> Mapping[str, Any]:
        properties = self.tools.get(self._function, {}).get("properties")
        schema = properties.get(parameter) if isinstance(properties, Mapping) else None
        return schema if isinstance(schema, Mapping) else {}

    def _tag(self, start: str) -> str | None:
        """Return the name in the tag with which the buffer begins; "": no tag; None: not yet."""
        if not self._buffer.startswith(start):
            return None if start.startswith(self._buffer) else ""
        said = self._buffer[len(start) : len(start) + _LONGEST_NAME + 1]
        name, closed, _ = said.partition(">")
        if "\n" in name or len(name) > _LONGEST_NAME:
            return ""
        if not closed:
            return None
        self._cut(len(start) + len(name) + 1)
        return name


def typed(value: str, schema: Mapping[str, Any]) -> Any:
    """Return a parameter as its schema wants it: text stays text, all else is read as JSON."""
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if value == "null" and "null" in kinds:
        return None
    if "string" in kinds:
        return value
    try:
        return parsed(value)
    except ValueError:
        return {"true": True, "false": False}.get(value.strip().lower(), value)
