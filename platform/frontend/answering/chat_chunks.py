"""Chat completions: the answer, chunk by chunk.

A chunk is a beginning and an end that are made once, with what has changed between them.
"""

from collections.abc import Sequence
from functools import partial

from stafette.platform.frontend.answering.writer import Placement
from stafette.platform.frontend.errors import ApiError
from stafette.platform.frontend.parsing.pieces import CallBegin, Piece, Reasoning, Text
from stafette.platform.frontend.plans import Plan
from stafette.platform.frontend.reading import Tally, answer_readers
from stafette.platform.frontend.spelling import Spelling
from stafette.platform.frontend.sse import DONE, as_json, event, quoted
from stafette.workers.batch import TokenLogprobs
from stafette.workers.request import OutputDelta
from stafette.workers.weights.tokenizer import Tokenizer

_GOES_ON = "null"


class ChatChunks:
    def __init__(
        self, plan: Plan, tokenizer: Tokenizer, created: int, *, include_usage: bool
    ) -> None:
        self._plan = plan
        self._num_top = plan.requests[0].params.logprobs
        self._spelling = Spelling(tokenizer)
        self._readers = answer_readers(plan, tokenizer)
        self._plain = plan.new_parser is None and self._num_top is None
        self._open = set(range(plan.num_answers))
        self._include_usage = include_usage
        self._common = (
            f'data: {{"id":{quoted(plan.answer_id)},"object":"chat.completion.chunk",'
            f'"created":{created},"model":{quoted(plan.model)},"choices":['
        )
        self._usage = ',"usage":null' if include_usage else ""
        self._tail = f'}},"logprobs":null,"finish_reason":null}}]{self._usage}}}\n\n'
        self._heads = [
            f'{self._common}{{"index":{index},"delta":{{"content":' for index in self._open
        ]
        self.tally = Tally.of(plan)

    def begin(self, placement: Placement) -> str:
        role = '{"role":"assistant","content":""}'
        chunks = [self._chunk(index, role) for index in sorted(self._open)]
        if self._plan.explain:
            explained = f'],"placement":{as_json(placement)}{self._usage}}}\n\n'
            chunks.append(self._common + explained)
        return "".join(chunks)

    def write(self, deltas: Sequence[OutputDelta]) -> str:
        self.tally.count(deltas, self._readers)
        if not self._plain:
            return "".join(map(self._written, deltas))
        if len(deltas) == 1 and deltas[0].finish_reason is None:
            return self._told(deltas[0].index, deltas[0].text)
        return self._joined(deltas)

    def end(self) -> str:
        if not self._include_usage:
            return DONE
        return f'{self._common}],"usage":{as_json(self.tally.usage())}}}\n\n{DONE}'

    def cut(self, reason: str) -> str:
        finish = f'"abort","stop_reason":{quoted(reason)}'
        return "".join(self._chunk(i, "{}", finish=finish) for i in sorted(self._open)) + self.end()

    def fail(self, error: ApiError) -> str:
        return event(error.to_dict()) + DONE

    def _joined(self, deltas: Sequence[OutputDelta]) -> str:
        """What has come together is told together, but for answers that end."""
        chunks = []
        texts: dict[int, str] = {}
        for delta in deltas:
            if delta.finish_reason is None:
                texts[delta.index] = texts.get(delta.index, "") + delta.text
            else:
                chunks.append(self._told(delta.index, texts.pop(delta.index, "")))
                chunks.append(self._written(delta))
        return "".join(chunks) + "".join(self._told(*item) for item in texts.items())

    def _told(self, index: int, text: str) -> str:
        return f"{self._heads[index]}{quoted(text)}{self._tail}" if text else ""

    def _written(self, delta: OutputDelta) -> str:
        reader = self._readers[delta.index]
        pieces = reader.read(delta)
        contents = [_content(piece) for piece in pieces]
        scores, finish = self._scored(delta.logprobs), _GOES_ON
        if delta.finish_reason is not None:
            self._open.discard(delta.index)
            reason = quoted(reader.finish_reason(delta) or "")
            finish = f'{reason},"stop_reason":{as_json(delta.stop_reason)}'
        if not contents and scores == "null" and finish == _GOES_ON:
            return ""
        first, *others = contents or ["{}"]
        if not others:
            return self._chunk(delta.index, first, scores, finish)
        # The first chunk has the log probabilities, the last one the reason of the end.
        chunk = partial(self._chunk, delta.index)
        middle = "".join(map(chunk, others[:-1]))
        return chunk(first, scores) + middle + chunk(others[-1], finish=finish)

    def _scored(self, logprobs: Sequence[TokenLogprobs] | None) -> str:
        if logprobs is None:
            return "null"
        return as_json({"content": self._spelling.chat(logprobs, self._num_top or 0)})

    def _chunk(self, index: int, delta: str, scores: str = "null", finish: str = _GOES_ON) -> str:
        return (
            f'{self._common}{{"index":{index},"delta":{delta},"logprobs":{scores},'
            f'"finish_reason":{finish}}}]{self._usage}}}\n\n'
        )


def _content(piece: Piece) -> str:
    """Return what a chunk says in `delta`."""
    if isinstance(piece, Text):
        return f'{{"content":{quoted(piece.text)}}}'
    if isinstance(piece, Reasoning):
        return f'{{"reasoning_content":{quoted(piece.text)}}}'
    if isinstance(piece, CallBegin):
        function = f'{{"name":{quoted(piece.name)},"arguments":""}}'
        begun = f'"id":{quoted(piece.call_id)},"type":"function","function":{function}'
        return f'{{"tool_calls":[{{"index":{piece.index},{begun}}}]}}'
    said = f'"function":{{"arguments":{quoted(piece.text)}}}'
    return f'{{"tool_calls":[{{"index":{piece.index},{said}}}]}}'
