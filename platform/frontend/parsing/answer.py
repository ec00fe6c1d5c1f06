"""Reads one answer: first its reasoning, then its calls and its text."""

from stafette.platform.frontend.parsing.pieces import CallArguments, CallBegin, Piece, Text
from stafette.platform.frontend.parsing.reasoning import ThinkParser
from stafette.platform.frontend.parsing.tool_parser import ToolParser


class AnswerParser:
    """With neither parser, text is text. With `one_call`, only the first call is heard."""

    def __init__(
        self,
        reasoning: ThinkParser | None = None,
        tools: ToolParser | None = None,
        one_call: bool = False,
    ) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self._one_call = one_call
        self.num_calls = 0

    @property
    def thinking(self) -> bool:
        return self._reasoning is not None and self._reasoning.thinking

    def feed(self, text: str) -> list[Piece]:
        """Return what is certain now."""
        return self._heard(self._through_tools(self._part(text)))

    def finish(self) -> list[Piece]:
        """Return what is left when the answer has ended."""
        last = self._reasoning.finish() if self._reasoning is not None else []
        pieces = self._through_tools(last)
        if self._tools is not None:
            pieces += self._tools.finish()
        return self._heard(pieces)

    def _part(self, text: str) -> list[Piece]:
        if self._reasoning is not None:
            return self._reasoning.feed(text)
        return [Text(text)] if text else []

    def _through_tools(self, pieces: list[Piece]) -> list[Piece]:
        if self._tools is None:
            return pieces
        read: list[Piece] = []
        for piece in pieces:
            read += self._tools.feed(piece.text) if isinstance(piece, Text) else [piece]
        return read

    def _heard(self, pieces: list[Piece]) -> list[Piece]:
        if self._one_call:
            pieces = [piece for piece in pieces if not _is_of_later_call(piece)]
        self.num_calls += sum(isinstance(piece, CallBegin) for piece in pieces)
        return pieces


def _is_of_later_call(piece: Piece) -> bool:
    return isinstance(piece, CallBegin | CallArguments) and piece.index > 0
