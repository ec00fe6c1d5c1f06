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
    arguments: str = ""

    def shown(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}


@dataclass(slots=True)
class SpokenMessage:
    """Puts pieces together."""

    text: str = ""
    reasoning: str = ""
    calls: list[SpokenCall] = field(default_factory=list)

    def add(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, Text):
                self.text += piece.text
            elif isinstance(piece, Reasoning):
                self.reasoning += piece.text
            elif isinstance(piece, CallBegin):
                self.calls.append(SpokenCall(piece.call_id, piece.name))
            else:
                self.calls[piece.index].arguments += piece.text

    def shown(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.calls:
            shown["content"] = self.text or None
            shown["tool_calls"] = [call.shown() for call in self.calls]
        if self.reasoning:
            shown["reasoning_content"] = self.reasoning
        return shown


class WholeChat:
    def __init__(self, plan: Plan, tokenizer: Tokenizer, created: int) -> None:
        self._plan = plan
        self._created = created
        self._num_top = plan.requests[0].params.logprobs
        self._spelling = Spelling(tokenizer)
        self._readers = answer_readers(plan, tokenizer)
        self._messages = [SpokenMessage() for _ in self._readers]
        self._choices: list[dict[str, Any]] = [{"index": i} for i in range(plan.num_answers)]
        self._scores: list[list[dict[str, Any]]] = [[] for _ in self._readers]
        self.tally = Tally.of(plan)

    def write(self, deltas: Sequence[OutputDelta]) -> None:
        self.tally.count(deltas, self._readers)
        for delta in deltas:
            reader = self._readers[delta.index]
            self._messages[delta.index].add(reader.read(delta))
            if delta.logprobs is not None:
                scores = self._spelling.chat(delta.logprobs, self._num_top or 0)
                self._scores[delta.index] += scores
            if delta.finish_reason is not None:
                self._choices[delta.index] |= {
                    "finish_reason": reader.finish_reason(delta),
                    "stop_reason": delta.stop_reason,
                }

    def whole(self, placement: Placement) -> dict[str, Any]:
        for choice, message, scores in zip(
            self._choices, self._messages, self._scores, strict=True
        ):
            choice["message"] = message.shown()
            choice["logprobs"] = {"content": scores} if self._num_top is not None else None
        shown = {
            "id": self._plan.answer_id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._plan.model,
            "choices": self._choices,
            "usage": self.tally.usage(),
        }
        return shown | {"placement": placement} if self._plan.explain else shown
