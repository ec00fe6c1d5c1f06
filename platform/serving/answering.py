"""One answer's text: what workers send are tokens, and they may come from one after the other."""

from collections.abc import Iterator
from dataclasses import replace

from stafette.workers.output import OutputProcessor
from stafette.workers.progress import Progress
from stafette.workers.request import OutputDelta, Request
from stafette.workers.service.joining import joined
from stafette.workers.weights.tokenizer import Tokenizer

_ONLY = 0  # each has a processor of its own


class AnswerText:
    """Detokenizes an answer as it grows, and ends it at a stop string."""

    def __init__(self, tokenizer: Tokenizer, request: Request, index: int) -> None:
        self._processor = OutputProcessor(tokenizer)
        self._processor.open(_ONLY, request, index)
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
        stop = delta.stop_reason
        progress = Progress(
            seq_id=_ONLY,
            token_ids=delta.token_ids,
            logprobs=delta.logprobs,
            finish_reason=delta.finish_reason,
            stop_token=stop if isinstance(stop, int) else None,
            prompt_logprobs=delta.prompt_logprobs,
            num_cached_tokens=delta.num_cached_tokens,
            error=delta.error,
            embedding=delta.embedding,
        )
        shown = self._processor.process(progress)
        assert shown is not None, "it is open as long as it is read"
        return shown
