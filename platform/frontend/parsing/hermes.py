"""Calls as Hermes and Qwen 2.5 write them: <tool_call>{"name": …, "arguments": {…}}</tool_call>."""

from stafette.platform.frontend.parsing.json_call import JsonCall
from stafette.platform.frontend.parsing.markers import before_marker, could_become
from stafette.platform.frontend.parsing.tool_parser import ToolParser

BEGIN, END = "<tool_call>", "</tool_call>"


class HermesParser(ToolParser):
    _call: JsonCall

    def _start(self) -> bool:
        length, found = before_marker(self._buffer, BEGIN)
        self._show(self._cut(length))
        if found:
            self._cut(len(BEGIN))
            self._open()
        return found

    def _open(self) -> None:
        self._call = JsonCall()
        self._mode = self._in_call

    def _in_call(self) -> bool:
        if not self._read(self._call):
            return False
        if self._call.begun:
            self._mode = self._after_call
        else:
            self._show_instead(self._call.raw)
        return True

    def _show_instead(self, said: str) -> None:
        """Show what was no call after all as the model said it."""
        self._show(BEGIN + said)
        self._mode = self._start

    def _after_call(self) -> bool:
        if not self._skip_blank():
            return False
        if not could_become(self._buffer, END):
            self._mode = self._start  # the model forgot the end
            return True
        if len(self._buffer) < len(END):
            return False
        self._cut(len(END))
        self._mode = self._start
        return True

    def _end(self) -> None:
        if self._mode == self._start:
            self._show_all()
