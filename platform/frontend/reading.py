"""Reads the deltas of one answer, and counts its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stafette.platform.frontend.errors import InternalError
from stafette.platform.frontend.parsing.answer import AnswerParser
from stafette.platform.frontend.parsing.pieces import Piece, Text
from stafette.platform.frontend.plans import Plan
from stafette.workers.request import OutputDelta
from stafette.workers.weights.tokenizer import Tokenizer


class AnswerReader:
    """One of a request's answers, on its way from text to what the text means."""

    __slots__ = ("_ends", "parser")

    def __init__(self, parser: AnswerParser | None, ends: dict[int, str]) -> None:
        self.parser = parser
        self._ends = ends  # end tokens that are in the text, and should not be

    @property
    def thinking(self) -> bool:
        return self.parser is not None and self.parser.thinking

    def read(self, delta: OutputDelta) -> list[Piece]:
        """Return what the delta adds; InternalError when the engine failed this request."""
        if delta.finish_reason == "error":
            raise InternalError(f"the request failed: {delta.error}")
        text = delta.text
        if self._ends and delta.finish_reason == "stop" and delta.token_ids:
            text = text.removesuffix(self._ends.get(delta.token_ids[-1], ""))
        if self.parser is None:
            return [Text(text)] if text else []
        pieces = self.parser.feed(text)
        if delta.finish_reason is not None:
            pieces += self.parser.finish()
        return pieces

    def finish_reason(self, delta: OutputDelta) -> str | None:
        """Return why the answer ended, in the API's words; None: it has not."""
        called = self.parser is not None and self.parser.num_calls > 0
        return "tool_calls" if called and delta.finish_reason == "stop" else delta.finish_reason


def answer_readers(plan: Plan, tokenizer: Tokenizer) -> list[AnswerReader]:
    """Return a reader for each of the plan's answers."""
    ends: dict[int, str] = {}
    if plan.hides_ends:
        spelled = tokenizer.token_bytes
        ends = {end: spelled[end].decode("utf-8", "replace") for end in tokenizer.eos_token_ids}
    make = plan.new_parser
    return [AnswerReader(make() if make else None, ends) for _ in range(plan.num_answers)]


@dataclass(slots=True)
class Tally:
    """The tokens of an exchange."""

    prompt_tokens: int
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    answers_per_prompt: int = 1
    _cached: dict[int, int] = field(default_factory=dict)  # by prompt

    @classmethod
    def of(cls, plan: Plan) -> "Tally":
        return cls(plan.num_prompt_tokens, answers_per_prompt=plan.answers_per_prompt)

    @property
    def cached_tokens(self) -> int:
        return sum(self._cached.values())

    def count(self, deltas: Sequence[OutputDelta], readers: Sequence[AnswerReader]) -> None:
        """Count what the readers have not read yet."""
        for delta in deltas:
            self.completion_tokens += len(delta.token_ids)
            if delta.num_cached_tokens:
                prompt = delta.index // self.answers_per_prompt
                self._cached[prompt] = max(self._cached.get(prompt, 0), delta.num_cached_tokens)
            if readers[delta.index].thinking:
                self.reasoning_tokens += len(delta.token_ids)

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }
