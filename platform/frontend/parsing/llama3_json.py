"""Calls as Llama 3 writes them: the answer is {"name": …, "parameters": {…}}, or several with `;`.

Nothing marks them but the braces (and sometimes <|python_tag|>), so JSON is a call only when it
names one of the request's tools.
"""

from stafette.platform.frontend.parsing.json_call import JsonCall
from stafette.platform.frontend.parsing.markers import could_become
from stafette.platform.frontend.parsing.tool_parser import ToolParser

_TAG = "<|python_tag|>"


class Llama3JsonParser(ToolParser):
    needs_special_tokens = True
    _call: JsonCall

    def _start(self) -> bool:
        stripped = self._buffer.lstrip()
        if not stripped:
            return False
        if stripped.startswith(_TAG):
            self._skip_blank()
            self._cut(len(_TAG))
            return True
        if stripped[0] == "{":
            self._call = JsonCall(self.tools)
            self._mode = self._in_call
            return True
        if could_become(stripped, _TAG):
            return False
        self._mode = self._plain
        return True

    def _plain(self) -> bool:
        self._show_all()
        return False

    def _in_call(self) -> bool:
        if not self._read(self._call):
            return False
        if self._call.begun:
            self._mode = self._after_call
        else:
            self._show(self._call.raw)
            self._mode = self._plain
        return True

    def _after_call(self) -> bool:
        self._buffer = self._buffer.lstrip(" \t\r\n;,")
        self._mode = self._start if self._buffer else self._after_call
        return bool(self._buffer)

    def _end(self) -> None:
        if self._mode == self._in_call and not self._call.begun:
            self._show(self._call.raw)
        self._show_all()
