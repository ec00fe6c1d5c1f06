"""Completions: the answer, whole or chunk by chunk, with the prompt in front when it is echoed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stafette.platform.frontend.answering.writer import Placement
from stafette.platform.frontend.errors import ApiError
from stafette.platform.frontend.parsing.pieces import Text
from stafette.platform.frontend.plans import Plan
from stafette.platform.frontend.reading import AnswerReader, Tally, answer_readers
from stafette.platform.frontend.spelling import CompletionScores, Spelling, empty_scores, joined
from stafette.platform.frontend.sse import DONE, as_json, event, quoted
from stafette.workers.batch import TokenLogprobs
from stafette.workers.request import OutputDelta
from stafette.workers.weights.tokenizer import Tokenizer

Scores = dict[str, list[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionForm:
    """`prompts`: their texts, when they are echoed. `adds`: False where they are only scored."""

    prompts: Sequence[str] | None = None
    num_top: int | None = None
    adds: bool = True


@dataclass(slots=True)
class _Said:
    """What a delta adds to one answer."""

    text: str
    scores: Scores | None
    finish: str | None
    stop_reason: int | str | None


class _Answers:
    """All answers of one request, read with the prompt's echo and the log probabilities.

    An echoed prompt's log probabilities come with the first of its answers only; what the others
    say before that waits for it.
    """

    def __init__(self, plan: Plan, tokenizer: Tokenizer, form: CompletionForm) -> None:
        self._plan = plan
        self._form = form
        self._readers = answer_readers(plan, tokenizer)
        self._spelling = Spelling(tokenizer)
        self._scores = [CompletionScores(self._spelling, form.num_top or 0) for _ in self._readers]
        self._begun: set[int] = set()
        self._prompt_scores: dict[int, Sequence[TokenLogprobs]] = {}
        self._waiting: dict[int, list[OutputDelta]] = {}  # by prompt
        self.open = set(range(plan.num_answers))
        self.tally = Tally.of(plan)

    def read(self, deltas: Sequence[OutputDelta]) -> list[tuple[int, _Said]]:
        if self._form.adds:
            self.tally.count(deltas, self._readers)
        said = []
        for delta in deltas:
            for ready in self._ready(delta):
                said.append((ready.index, self._said(ready, self._readers[ready.index])))
        return said

    def _ready(self, delta: OutputDelta) -> list[OutputDelta]:
        if self._form.prompts is None or self._form.num_top is None:
            return [delta]
        prompt = delta.index // self._plan.answers_per_prompt
        if delta.prompt_logprobs is not None:
            self._prompt_scores[prompt] = delta.prompt_logprobs
            return [delta, *self._waiting.pop(prompt, [])]
        if prompt in self._prompt_scores or delta.finish_reason == "error":
            return [delta]
        self._waiting.setdefault(prompt, []).append(delta)
        return []

    def _said(self, delta: OutputDelta, reader: AnswerReader) -> _Said:
        pieces = reader.read(delta)
        text = "".join(piece.text for piece in pieces if isinstance(piece, Text))
        scores = None
        if self._form.num_top is not None:
            scores = self._scores[delta.index].entries(delta.logprobs or ())
        if not self._form.adds:
            text, scores = "", empty_scores() if scores is not None else None
        if self._form.prompts is not None and delta.index not in self._begun:
            self._begun.add(delta.index)
            text, scores = self._echoed(delta, text)
        if delta.finish_reason is not None:
            self.open.discard(delta.index)
        finish = delta.finish_reason
        if finish is not None and not self._form.adds:
            finish = "length"
        return _Said(text, scores, finish, delta.stop_reason)

    def _echoed(self, delta: OutputDelta, text: str) -> tuple[str, Scores | None]:
        assert self._form.prompts is not None
        prompt = delta.index // self._plan.answers_per_prompt
        whole = self._form.prompts[prompt] + text
        if self._form.num_top is None:
            return whole, None
        scores = self._scores[delta.index] = CompletionScores(self._spelling, self._form.num_top)
        tokens = self._plan.requests[prompt].prompt_token_ids
        echoed = scores.prompt_entries(tokens, self._prompt_scores.get(prompt, ()))
        if not self._form.adds:
            return whole, echoed
        return whole, joined(echoed, scores.entries(delta.logprobs or ()))


@dataclass(slots=True)
class _Choice:
    index: int
    texts: list[str] = field(default_factory=list)
    scores: Scores = field(default_factory=empty_scores)
    finish: str | None = None
    stop_reason: int | str | None = None


class WholeCompletion:
    def __init__(
        self, plan: Plan, tokenizer: Tokenizer, created: int, form: CompletionForm
    ) -> None:
        self._plan = plan
        self._created = created
        self._scored = form.num_top is not None
        self._answers = _Answers(plan, tokenizer, form)
        self._choices = [_Choice(index) for index in range(plan.num_answers)]

    def write(self, deltas: Sequence[OutputDelta]) -> None:
        for index, said in self._answers.read(deltas):
            choice = self._choices[index]
            choice.texts.append(said.text)
            if said.scores is not None:
                for name, entries in said.scores.items():
                    choice.scores[name] += entries
            choice.finish, choice.stop_reason = said.finish, said.stop_reason

    def whole(self, placement: Placement) -> dict[str, Any]:
        shown = {
            "id": self._plan.answer_id,
            "object": "text_completion",
            "created": self._created,
            "model": self._plan.model,
            "choices": [self._shown(choice) for choice in self._choices],
            "usage": self._answers.tally.usage(),
        }
        return shown | {"placement": placement} if self._plan.explain else shown

    def _shown(self, choice: _Choice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": "".join(choice.texts),
            "logprobs": choice.scores if self._scored else None,
            "finish_reason": choice.finish,
            "stop_reason": choice.stop_reason,
        }


class CompletionChunks:
    def __init__(
        self,
        plan: Plan,
        tokenizer: Tokenizer,
        created: int,
        form: CompletionForm,
        *,
        include_usage: bool,
    ) -> None:
        self._plan = plan
        self._answers = _Answers(plan, tokenizer, form)
        self._include_usage = include_usage
        self._usage = ',"usage":null' if include_usage else ""
        self._common = (
            f'data: {{"id":{quoted(plan.answer_id)},"object":"text_completion",'
            f'"created":{created},"model":{quoted(plan.model)},"choices":['
        )

    def begin(self, placement: Placement) -> str:
        if not self._plan.explain:
            return ""
        return f'{self._common}],"placement":{as_json(placement)}{self._usage}}}\n\n'

    def write(self, deltas: Sequence[OutputDelta]) -> str:
        said = self._answers.read(deltas)
        return "".join(
            self._chunk(index, part)
            for index, part in said
            if part.text or part.finish or (part.scores and part.scores["tokens"])
        )

    def end(self) -> str:
        if not self._include_usage:
            return DONE
        usage = as_json(self._answers.tally.usage())
        return f'{self._common}],"usage":{usage}}}\n\n{DONE}'

    def cut(self, reason: str) -> str:
        last = _Said("", None, "abort", reason)
        return "".join(self._chunk(i, last) for i in sorted(self._answers.open)) + self.end()

    def fail(self, error: ApiError) -> str:
        return event(error.to_dict()) + DONE

    def _chunk(self, index: int, said: _Said) -> str:
        finish = "null"
        if said.finish is not None:
            finish = f'{quoted(said.finish)},"stop_reason":{as_json(said.stop_reason)}'
        scores = "null" if said.scores is None else as_json(said.scores)
        return (
            f'{self._common}{{"index":{index},"text":{quoted(said.text)},"logprobs":{scores},'
            f'"finish_reason":{finish}}}]{self._usage}}}\n\n'
        )
