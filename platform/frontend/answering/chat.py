"""Chat completions: the answer, whole."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stafette.platform.frontend.answering.writer import Placement
from stafette.platform.frontend.parsing.pieces import CallBegin, Piece, Reasoning, Text
from stafette.platform.frontend.plans import Plan
from stafette.platform.frontend.reading import Tally, answer_readers
from stafette.platform.frontend.spelling import Spelling
from stafette.workers.request import OutputDelta
from stafette.workers.weights.tokenizer import Tokenizer


@dataclass(slots=True)
class SpokenCall:
    call_id: str
    name: str
    parts: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        return "".join(self.parts)

    def shown(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}


class SpokenMessage:
    """Puts pieces together."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self.calls: list[SpokenCall] = []

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def add(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, Text):
                self._text.append(piece.text)
            elif isinstance(piece, Reasoning):
                self._reasoning.append(piece.text)
            elif isinstance(piece, CallBegin):
                self.calls.append(SpokenCall(piece.call_id, piece.name))
            else:
                self.calls[piece.index].parts.append(piece.text)

    def shown(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.calls:
            shown["content"] = self.text or None
            shown["tool_calls"] = [call.shown() for call in self.calls]
        if self._reasoning:
            shown["reasoning_content"] = self.reasoning
        return shown


@dataclass(slots=True)
class _Choice:
    message: SpokenMessage = field(default_factory=SpokenMessage)
    scores: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def shown(self, index: int, scored: bool) -> dict[str, Any]:
        return {
            "index": index,
            "message": self.message.shown(),
            "logprobs": {"content": self.scores} if scored else None,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
        }


class WholeChat:
    def __init__(self, plan: Plan, tokenizer: Tokenizer, created: int) -> None:
        self._plan = plan
        self._created = created
        self._num_top = plan.requests[0].params.logprobs
        self._spelling = Spelling(tokenizer)
        self._readers = answer_readers(plan, tokenizer)
        self._choices = [_Choice() for _ in self._readers]
        self.tally = Tally.of(plan)

    def write(self, deltas: Sequence[OutputDelta]) -> None:
        self.tally.count(deltas, self._readers)
        for delta in deltas:
            reader, choice = self._readers[delta.index], self._choices[delta.index]
            choice.message.add(reader.read(delta))
            if delta.logprobs is not None:
                choice.scores += self._spelling.chat(delta.logprobs, self._num_top or 0)
            if delta.finish_reason is not None:
                choice.finish_reason = reader.finish_reason(delta)
                choice.stop_reason = delta.stop_reason

    def whole(self, placement: Placement) -> dict[str, Any]:
        scored = self._num_top is not None
        choices = [choice.shown(index, scored) for index, choice in enumerate(self._choices)]
        shown = {
            "id": self._plan.answer_id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._plan.model,
            "choices": choices,
            "usage": self.tally.usage(),
        }
        return shown | {"placement": placement} if self._plan.explain else shown
