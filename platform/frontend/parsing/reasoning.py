"""Parts what a model thinks, <think>…</think>, from what it answers."""

from collections.abc import Callable

from stafette.platform.frontend.parsing.markers import before_marker
from stafette.platform.frontend.parsing.pieces import Piece, Reasoning, Text

BEGIN, END = "<think>", "</think>"


class ThinkParser:
    """`inside`: the answer begins within the thought, as DeepSeek-R1's does, or where the prompt
    ended with <think>. White space next to the tags belongs to them.
    """

    def __init__(self, inside: bool) -> None:
        self._inside_at_first = inside
        self._buffer = ""
        self._blank = ""
        self._shown = False  # some of this part, thought or answer
        self._mode: Callable[[], list[Piece]] = self._start
        self.thinking = inside

    def feed(self, text: str) -> list[Piece]:
        """Return what is certain now."""
        self._buffer += text
        return self._mode()

    def finish(self) -> list[Piece]:
        """Return what is left when the answer has ended."""
        text, self._buffer = self._buffer, ""
        if self.thinking:
            return self._think(text)
        return [Text(text)] if text else []

    def _start(self) -> list[Piece]:
        stripped = self._buffer.lstrip()
        if BEGIN.startswith(stripped):  # nothing yet, or the beginning of the tag
            if stripped == BEGIN:
                return self._enter(stripped)
            return []
        if stripped.startswith(BEGIN) or self._inside_at_first:
            return self._enter(stripped)
        return self._leave("")

    def _enter(self, stripped: str) -> list[Piece]:
        self._buffer = stripped.removeprefix(BEGIN)
        self.thinking = True
        self._mode = self._inside
        return self._inside()

    def _inside(self) -> list[Piece]:
        length, found = before_marker(self._buffer, END)
        thought = self._think(self._buffer[:length])
        self._buffer = self._buffer[length:]
        return thought + self._leave(END) if found else thought

    def _think(self, text: str) -> list[Piece]:
        whole = self._blank + text
        shown = whole.rstrip()
        self._blank = whole[len(shown) :]
        if not self._shown:
            shown = shown.lstrip()
        self._shown = self._shown or bool(shown)
        if not shown:
            return []
        return [Reasoning(shown)]

    def _leave(self, tag: str) -> list[Piece]:
        self._buffer = self._buffer.removeprefix(tag)
        self.thinking = False
        self._mode = self._skip_blank if tag else self._answer
        return self._mode()

    def _skip_blank(self) -> list[Piece]:
        self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return []
        self._mode = self._answer
        return self._answer()

    def _answer(self) -> list[Piece]:
        text, self._buffer = self._buffer, ""
        return [Text(text)] if text else []
