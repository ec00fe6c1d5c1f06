"""One answer's text: what workers send are tokens, and they may come from one after the other."""

from collections.abc import Iterator
from dataclasses import replace

from stafette.workers.output import AnswerReader
from stafette.workers.request import OutputDelta, Request
from stafette.workers.service.joining import joined
from stafette.workers.weights.tokenizer import Tokenizer


class AnswerText:
    """Detokenizes an answer as it grows, and ends it at a stop string."""

    def __init__(self, tokenizer: Tokenizer, request: Request, index: int) -> None:
        self._reader = AnswerReader.of(request, index, tokenizer)
        self._may_stop = bool(request.params.stop)
        self.token_ids: list[int] = list(request.output_token_ids)

    def read(self, delta: OutputDelta) -> OutputDelta:
        """Return what the client sees of a worker's delta."""
        if self._may_stop and len(delta.token_ids) > 1:
            return joined(list(self._up_to_stop(delta)))
        return self._read(delta)

    def _up_to_stop(self, delta: OutputDelta) -> Iterator[OutputDelta]:
        """Read token by token: those behind a stop string are none of the answer's."""
        last = len(delta.token_ids) - 1
        for place, token in enumerate(delta.token_ids):
            scores = None if delta.logprobs is None else delta.logprobs[place : place + 1]
            one = replace(delta, token_ids=[token], logprobs=scores)
            shown = self._read(one if place == last else replace(one, finish_reason=None))
            yield shown
            if shown.finish_reason is not None:
                return

    def _read(self, delta: OutputDelta) -> OutputDelta:
        self.token_ids += delta.token_ids
        text, stop_string = self._reader.read(delta.token_ids, delta.finish_reason is not None)
        stopped = stop_string is not None
        return OutputDelta(
            request_id=self._reader.request.request_id,
            index=self._reader.index,
            token_ids=delta.token_ids,
            text=text,
            logprobs=delta.logprobs,
            finish_reason="stop" if stopped else delta.finish_reason,
            stop_reason=stop_string if stopped else delta.stop_reason,
            prompt_logprobs=delta.prompt_logprobs if self._reader.index == 0 else None,
            num_cached_tokens=delta.num_cached_tokens,
            error=delta.error,
            embedding=delta.embedding,
        )
