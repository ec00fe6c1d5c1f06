"""What every parser of tool calls is: text in, pieces out, the same however the text is cut."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from stafette.platform.frontend.parsing.json_call import JsonCall
from stafette.platform.frontend.parsing.pieces import (
    CallArguments,
    CallBegin,
    Piece,
    Text,
    new_call_id,
)

Tools = Mapping[str, Mapping[str, Any]]  # the JSON schema of each tool's parameters


class ToolParser(ABC):
    """Reads one answer. `_mode` takes from `_buffer`, and says whether it got anywhere.

    White space round calls belongs to nobody: it is shown only when text follows it.
    """

    needs_special_tokens = False  # the model marks calls with tokens that are left out of text

    def __init__(self, tools: Tools, new_id: Callable[[], str] = new_call_id) -> None:
        self.tools = tools
        self._new_id = new_id
        self._buffer = ""
        self._blank = ""
        self._pieces: list[Piece] = []
        self._num_calls = 0
        self._mode: Callable[[], bool] = self._start

    def feed(self, text: str) -> list[Piece]:
        """Return what is certain now."""
        self._buffer += text
        self._run()
        return self._taken()

    def finish(self) -> list[Piece]:
        """Return what is left when the answer has ended: never half a call's markup."""
        self._end()
        if self._num_calls == 0 and self._blank:
            self._pieces.append(Text(self._blank))
        return self._taken()

    @abstractmethod
    def _start(self) -> bool:
        """Take from the buffer what can be taken at the answer's beginning."""

    @abstractmethod
    def _end(self) -> None:
        """Show what the buffer still holds, if it is to be shown."""

    def _run(self) -> None:
        while self._buffer and self._mode():
            pass

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _show(self, text: str) -> None:
        """Add text for the user, without the white space at its end."""
        whole = self._blank + text
        shown = whole.rstrip()
        self._blank = whole[len(shown) :]
        if shown:
            self._pieces.append(Text(shown))

    def _show_all(self) -> None:
        text, self._buffer = self._buffer, ""
        self._show(text)

    def _cut(self, length: int) -> str:
        """Take so many characters from the buffer."""
        text, self._buffer = self._buffer[:length], self._buffer[length:]
        return text

    def _skip_blank(self) -> bool:
        """Drop white space; return whether anything is left."""
        self._buffer = self._buffer.lstrip()
        return bool(self._buffer)

    def _begin_call(self, name: str, call_id: str | None = None) -> None:
        self._blank = ""
        self._pieces.append(CallBegin(self._num_calls, call_id or self._new_id(), name))
        self._num_calls += 1

    def _add_arguments(self, text: str) -> None:
        """Add to the arguments of the call that was begun last."""
        if text:
            self._pieces.append(CallArguments(self._num_calls - 1, text))

    def _read(self, call: JsonCall) -> bool:
        """Let `call` take from the buffer; return whether it has come to an end, good or bad."""
        begun = call.begun
        self._cut(call.feed(self._buffer))
        if call.begun and not begun:
            self._begin_call(call.name, call.call_id)
        if call.begun:
            self._add_arguments(call.new_arguments())
        return call.done or call.broken
