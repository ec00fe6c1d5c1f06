"""Responses: the answer as output items; whole, or event by event."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stafette.platform.frontend.answering.response_items import (
    CallItem,
    Item,
    MessageItem,
    ReasoningItem,
)
from stafette.platform.frontend.answering.writer import Placement
from stafette.platform.frontend.errors import ApiError
from stafette.platform.frontend.parsing.pieces import (
    CallArguments,
    CallBegin,
    Piece,
    Reasoning,
    Text,
)
from stafette.platform.frontend.plans import Plan
from stafette.platform.frontend.reading import Tally, answer_readers
from stafette.platform.frontend.spelling import Spelling
from stafette.platform.frontend.sse import event
from stafette.workers.request import OutputDelta
from stafette.workers.weights.tokenizer import Tokenizer

_WHY_INCOMPLETE = {"length": "max_output_tokens"}


class ResponseWriter:
    """Both a stream's writer and, with its events thrown away, that of a whole response.

    `told` is what a response repeats of its request.
    """

    def __init__(
        self, plan: Plan, tokenizer: Tokenizer, created: int, told: Mapping[str, Any]
    ) -> None:
        self._plan = plan
        self._told = told
        self._created = created
        self._num_top = plan.requests[0].params.logprobs
        self._spelling = Spelling(tokenizer)
        self._readers = answer_readers(plan, tokenizer)
        self._sequence = 0
        self._items: list[Item] = []
        self._finished: list[dict[str, Any]] = []
        self._scores: list[dict[str, Any]] = []  # of tokens that no text was seen of yet
        self._finish: str | None = None
        self._placement: Placement = None
        self.tally = Tally.of(plan)

    def begin(self, placement: Placement) -> str:
        self._placement = placement
        response = self._shown("in_progress")
        return "".join(
            self._emit(name, {"response": response})
            for name in ("response.created", "response.in_progress")
        )

    def write(self, deltas: Sequence[OutputDelta]) -> str:
        self.tally.count(deltas, self._readers)
        return "".join(text for delta in deltas for text in self._events(delta))

    def end(self) -> str:
        reason = _WHY_INCOMPLETE.get(self._finish or "")
        return self._closed("incomplete" if reason else "completed", reason)

    def cut(self, reason: str) -> str:
        return self._closed("incomplete", reason)

    def fail(self, error: ApiError) -> str:
        shown = {"code": "server_error", "message": error.message}
        response = self._shown("failed") | {"error": shown}
        return self._emit("response.failed", {"response": response})

    def whole(self, placement: Placement) -> dict[str, Any]:
        """Return the response, once all is written."""
        self._placement = placement
        self.end()
        reason = _WHY_INCOMPLETE.get(self._finish or "")
        return self._shown("incomplete" if reason else "completed", reason)

    def _events(self, delta: OutputDelta) -> Iterator[str]:
        pieces = self._readers[0].read(delta)
        if delta.logprobs is not None:
            self._scores += self._spelling.chat(delta.logprobs, self._num_top or 0)
        for piece in pieces:
            yield from self._grown(piece)
        if delta.finish_reason is not None:
            self._finish = delta.finish_reason

    def _grown(self, piece: Piece) -> Iterator[str]:
        if isinstance(piece, CallBegin):
            yield from self._switch(CallItem(self._next, self._emit, piece.call_id, piece.name))
        elif isinstance(piece, CallArguments):
            yield self._items[-1].add(piece.text, [])
        elif isinstance(piece, Reasoning):
            yield from self._said(ReasoningItem, piece.text)
        else:
            assert isinstance(piece, Text)
            yield from self._said(MessageItem, piece.text)

    def _said(self, kind: type[MessageItem | ReasoningItem], text: str) -> Iterator[str]:
        if not self._items or not isinstance(self._items[-1], kind):
            yield from self._switch(kind(self._next, self._emit))
        scores, self._scores = self._scores, []
        yield self._items[-1].add(text, scores)

    def _switch(self, item: Item) -> Iterator[str]:
        yield from self._close_last("completed")
        self._items.append(item)
        yield from item.open()

    def _close_last(self, status: str) -> Iterator[str]:
        if len(self._items) > len(self._finished):
            item = self._items[-1]
            yield from item.done(status)
            self._finished.append(item.shown(status))

    def _closed(self, status: str, reason: str | None) -> str:
        events: list[str] = []
        if not self._items:
            events += self._switch(MessageItem(0, self._emit))
        events += self._close_last(status)
        response = self._shown(status, reason)
        events.append(self._emit(f"response.{status}", {"response": response}))
        return "".join(events)

    @property
    def _next(self) -> int:
        return len(self._items)

    def _emit(self, name: str, fields: Mapping[str, Any]) -> str:
        text = event({"type": name, **fields, "sequence_number": self._sequence}, name)
        self._sequence += 1
        return text

    def _shown(self, status: str, reason: str | None = None) -> dict[str, Any]:
        shown = {
            "id": self._plan.answer_id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": reason} if reason else None,
            "model": self._plan.model,
            "output": list(self._finished),
            "usage": self._usage() if status != "in_progress" else None,
            **self._told,
        }
        return shown | {"placement": self._placement} if self._plan.explain else shown

    def _usage(self) -> dict[str, Any]:
        tally = self.tally
        return {
            "input_tokens": tally.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": tally.cached_tokens,
                "cache_write_tokens": 0,  # nobody pays for these here
            },
            "output_tokens": tally.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": tally.reasoning_tokens},
            "total_tokens": tally.prompt_tokens + tally.completion_tokens,
        }
