"""Calls as Llama 4 and ToolACE write them: the answer is a Python list, [f(a=1), g(b="x")].

Nothing marks them, so a list is one of calls only when it begins with one of the request's tools.
"""

import ast
import json
import re
import warnings
from typing import Any

from stafette.platform.frontend.parsing.tool_parser import ToolParser

_CALL = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*\(")
_CALL_SO_FAR = re.compile(r"\s*([A-Za-z_][\w.-]*\s*)?$")
_NAMES = {"true": True, "false": False, "null": None}  # as models write them that think in JSON


class PythonicParser(ToolParser):
    def _start(self) -> bool:
        stripped = self._buffer.lstrip()
        if not stripped:
            return False
        if stripped[0] != "[":
            self._mode = self._plain
            return True
        match = _CALL.match(stripped, 1)
        if match is None and _CALL_SO_FAR.match(stripped, 1):
            return False
        if match is None or match[1] not in self.tools:
            self._mode = self._plain
            return True
        self._skip_blank()
        self._cut(1)
        self._mode = self._in_list
        return True

    def _plain(self) -> bool:
        self._show_all()
        return False

    def _in_list(self) -> bool:
        self._buffer = self._buffer.lstrip(" \t\r\n,")
        if not self._buffer:
            return False
        if self._buffer[0] == "]":
            self._cut(1)
            self._mode = self._plain
            return True
        length = _length_of_call(self._buffer)
        if length is None:
            return False
        self._call(self._cut(length))
        return True

    def _call(self, said: str) -> None:
        call = _read(said)
        if call is None:
            self._show(said if self._num_calls else f"[{said}")
            self._mode = self._plain
            return
        name, arguments = call
        self._begin_call(name)
        self._add_arguments(json.dumps(arguments, ensure_ascii=False))

    def _end(self) -> None:
        if self._mode != self._in_list:
            self._show_all()


def _length_of_call(text: str) -> int | None:
    """Return where the first call ends, or where it is seen to be none; None: not yet."""
    depth = 0
    quote = ""
    escaped = False
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and not escaped
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth <= 0:
                return place + 1
    return None


def _read(said: str) -> tuple[str, dict[str, Any]] | None:
    head = _CALL.match(said)
    if head is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the model's escapes, which are not ours
            call = ast.parse(f"f({said[head.end() :]}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        arguments = {str(word.arg): _value(word.value) for word in call.keywords}
        return head[1], json.loads(json.dumps(arguments, allow_nan=False))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {
                _value(key): _value(value)
                for key, value in zip(keys, values, strict=True)
                if key is not None
            }
    return ast.literal_eval(node)
