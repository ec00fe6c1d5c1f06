"""Calls that the request forced: the grammar lets the model write nothing else."""

from collections.abc import Callable

from stafette.platform.frontend.parsing.json_call import JsonCall
from stafette.platform.frontend.parsing.pieces import new_call_id
from stafette.platform.frontend.parsing.tool_parser import ToolParser, Tools


class RequiredParser(ToolParser):
    """Reads [{"name": …, "parameters": {…}}, …]."""

    _call: JsonCall

    def _start(self) -> bool:
        self._buffer = self._buffer.lstrip(" \t\r\n[],")
        if not self._buffer:
            return False
        self._call = JsonCall()
        self._mode = self._in_list
        return True

    def _in_list(self) -> bool:
        if not self._read(self._call):
            return False
        if self._call.broken and not self._call.begun:
            self._show(self._call.raw)
        self._mode = self._plain if self._call.broken else self._start
        return True

    def _plain(self) -> bool:
        self._show_all()
        return False

    def _end(self) -> None:
        """Half a call stays unseen; `finish_reason` tells why."""


class NamedParser(ToolParser):
    """Reads the arguments of the one tool that was named: they are the whole answer."""

    def __init__(self, tools: Tools, name: str, new_id: Callable[[], str] = new_call_id) -> None:
        super().__init__(tools, new_id)
        self._name = name

    def _start(self) -> bool:
        if self._num_calls == 0:
            if not self._skip_blank():
                return False
            self._begin_call(self._name)
        self._add_arguments(self._cut(len(self._buffer)))
        return False

    def _end(self) -> None:
        pass
