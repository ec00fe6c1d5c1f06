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
        """Return what the client sees of a worker's delta, which is ours from now on."""
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
        """Turn a worker's delta into the client's. A new one would cost as much as all of this."""
        reader = self._reader
        self.token_ids += delta.token_ids
        delta.text, stop_string = reader.read(delta.token_ids, delta.finish_reason is not None)
        delta.request_id, delta.index = reader.request.request_id, reader.index
        if stop_string is not None:
            delta.finish_reason, delta.stop_reason = "stop", stop_string
        if reader.index:
            delta.prompt_logprobs = None  # the first answer tells them
        return delta
