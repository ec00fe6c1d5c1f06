"""The items of a response's output, and the events that tell how each one grows."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

Shown = dict[str, Any]
Emit = Callable[[str, Shown], str]  # an event's name and fields -> its text


class Item(ABC):
    """One item on its way. Each method returns events."""

    prefix = ""

    def __init__(self, index: int, emit: Emit) -> None:
        self.item_id = f"{self.prefix}_{secrets.token_hex(16)}"
        self._index = index
        self._emit = emit
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def open(self) -> Iterator[str]:
        item = self.shown("in_progress")
        yield self._emit("response.output_item.added", {**self._place(), "item": item})

    @abstractmethod
    def add(self, text: str, scores: list[Shown]) -> str:
        """Take in text; return the event that tells of it."""

    @abstractmethod
    def close(self) -> Iterator[str]:
        """Return the events that come before the item is done."""

    @abstractmethod
    def shown(self, status: str) -> Shown:
        """Return the item as it is now."""

    def done(self, status: str) -> Iterator[str]:
        yield from self.close()
        item = self.shown(status)
        yield self._emit("response.output_item.done", {**self._place(), "item": item})

    def _place(self) -> Shown:
        return {"output_index": self._index}

    def _within(self) -> Shown:
        return {"item_id": self.item_id, **self._place()}


class _WithPart(Item):
    """An item whose text is its one content part."""

    event = ""

    @abstractmethod
    def part(self) -> Shown: ...

    def open(self) -> Iterator[str]:
        yield from super().open()
        part = self.part()
        yield self._emit("response.content_part.added", {**self._in_part(), "part": part})

    def close(self) -> Iterator[str]:
        yield self._emit(f"{self.event}.done", self._in_part() | self._finished())
        yield self._emit("response.content_part.done", self._in_part() | {"part": self.part()})

    def _finished(self) -> Shown:
        return {"text": self.text}

    def _in_part(self) -> Shown:
        return {**self._within(), "content_index": 0}


class MessageItem(_WithPart):
    prefix, event = "msg", "response.output_text"

    def __init__(self, index: int, emit: Emit) -> None:
        super().__init__(index, emit)
        self._scores: list[Shown] = []

    def add(self, text: str, scores: list[Shown]) -> str:
        self._parts.append(text)
        self._scores += scores
        fields = {**self._in_part(), "delta": text, "logprobs": scores}
        return self._emit("response.output_text.delta", fields)

    def part(self) -> Shown:
        scores = list(self._scores)
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": scores}

    def shown(self, status: str) -> Shown:
        content = [self.part()] if status != "in_progress" else []
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _finished(self) -> Shown:
        return {"text": self.text, "logprobs": list(self._scores)}


class ReasoningItem(_WithPart):
    prefix, event = "rs", "response.reasoning_text"

    def add(self, text: str, scores: list[Shown]) -> str:
        self._parts.append(text)
        return self._emit("response.reasoning_text.delta", {**self._in_part(), "delta": text})

    def part(self) -> Shown:
        return {"type": "reasoning_text", "text": self.text}

    def shown(self, status: str) -> Shown:
        content = [self.part()] if status != "in_progress" else []
        return {
            "id": self.item_id,
            "type": "reasoning",
            "status": status,
            "summary": [],
            "content": content,
        }


class CallItem(Item):
    prefix = "fc"

    def __init__(self, index: int, emit: Emit, call_id: str, name: str) -> None:
        super().__init__(index, emit)
        self._call_id = call_id
        self._name = name

    def add(self, text: str, scores: list[Shown]) -> str:
        self._parts.append(text)
        fields = {**self._within(), "delta": text}
        return self._emit("response.function_call_arguments.delta", fields)

    def close(self) -> Iterator[str]:
        fields = {**self._within(), "name": self._name, "arguments": self.text}
        yield self._emit("response.function_call_arguments.done", fields)

    def shown(self, status: str) -> Shown:
        return {
            "id": self.item_id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": self.text,
        }
