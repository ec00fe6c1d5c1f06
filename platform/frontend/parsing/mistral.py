"""Calls as Mistral's models write them, behind [TOOL_CALLS].

Older: [TOOL_CALLS][{"name": …, "arguments": {…}}, …]
Newer: [TOOL_CALLS]name[ARGS]{…}, where [CALL_ID]… may come before [ARGS].
"""

import re
import secrets
import string
from collections.abc import Callable

from stafette.platform.frontend.parsing.json_call import JsonCall
from stafette.platform.frontend.parsing.json_value import ValueEnd, Verdict, escaped
from stafette.platform.frontend.parsing.markers import before_marker
from stafette.platform.frontend.parsing.tool_parser import ToolParser, Tools

_MARKER = "[TOOL_CALLS]"
_HEAD = re.compile(
    r"\s*(?P<name>[\w.-]+)\s*(?:\[CALL_ID\]\s*(?P<id>\w+)\s*)?(?:\[ARGS\]\s*)?(?=\{)"
)
_HEAD_SO_FAR = re.compile(r"\s*([\w.-]+\s*(\[[A-Z_]*(\]\s*\w*\s*)?){0,2})?$")
_LETTERS = string.ascii_letters + string.digits


def nine_letters() -> str:
    """Return an id as Mistral's own templates demand it."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


class MistralParser(ToolParser):
    needs_special_tokens = True
    _call: JsonCall
    _value: ValueEnd

    def __init__(self, tools: Tools, new_id: Callable[[], str] = nine_letters) -> None:
        super().__init__(tools, new_id)

    def _start(self) -> bool:
        length, found = before_marker(self._buffer, _MARKER)
        self._show(self._cut(length))
        if found:
            self._cut(len(_MARKER))
            self._mode = self._either_form
        return found

    def _either_form(self) -> bool:
        stripped = self._buffer.lstrip()
        if not stripped:
            return False
        if stripped[0] == "[":
            self._skip_blank()
            self._cut(1)
            self._mode = self._next_in_list
        else:
            self._mode = self._head
        return True

    def _next_in_list(self) -> bool:
        self._buffer = self._buffer.lstrip(" \t\r\n,")
        if not self._buffer:
            return False
        if self._buffer[0] == "{":
            self._call = JsonCall()
            self._mode = self._in_list
        else:
            self._cut(int(self._buffer[0] == "]"))
            self._mode = self._start
        return True

    def _in_list(self) -> bool:
        if not self._read(self._call):
            return False
        if not self._call.begun:
            self._show(f"{_MARKER}[{self._call.raw}")
            self._mode = self._start
        else:
            self._mode = self._next_in_list
        return True

    def _head(self) -> bool:
        match = _HEAD.match(self._buffer)
        if match is None:
            if _HEAD_SO_FAR.match(self._buffer):
                return False
            self._show(_MARKER)
            self._mode = self._start
            return True
        self._cut(match.end())
        self._begin_call(match["name"], match["id"])
        self._value = ValueEnd()
        self._mode = self._bare_arguments
        return True

    def _bare_arguments(self) -> bool:
        read: list[str] = []
        verdict = Verdict.MORE
        for char in self._buffer:
            in_string = self._value.in_string
            verdict = self._value.take(char)
            if verdict is Verdict.BAD:
                break
            read.append(escaped(char) if in_string else char)
            if verdict is Verdict.LAST:
                break
        self._cut(len(read))
        self._add_arguments("".join(read))
        if verdict is Verdict.MORE:
            return False
        self._mode = self._start
        return True

    def _end(self) -> None:
        if self._mode == self._start:
            self._show_all()
