"""From tokens to text: detokenizes each answer as it grows and ends it at a stop string."""

from dataclasses import dataclass

from stafette.workers.progress import Progress
from stafette.workers.request import OutputDelta, Request
from stafette.workers.sampling.stops import StopChecker
from stafette.workers.weights.tokenizer import IncrementalDetokenizer, Tokenizer


@dataclass(slots=True)
class AnswerReader:
    """Reads one answer's tokens, as they come."""

    request: Request
    index: int
    detokenizer: IncrementalDetokenizer | None
    stops: StopChecker | None
    num_tokens: int  # so far

    @classmethod
    def of(cls, request: Request, index: int, tokenizer: Tokenizer) -> "AnswerReader":
        params = request.params
        detokenizer = stops = None
        if request.detokenize:
            skip = params.skip_special_tokens
            detokenizer = IncrementalDetokenizer(tokenizer, request.token_ids, skip)
            stops = StopChecker(params.stop, params.include_stop_str_in_output)
        return cls(request, index, detokenizer, stops, len(request.output_token_ids))

    def read(self, token_ids: list[int], ended: bool) -> tuple[str, str | None]:
        """Return the text to show, and the stop string that ended the answer."""
        if self.detokenizer is None or self.stops is None:
            return "", None
        unchecked = self.request.params.min_tokens - self.num_tokens
        self.num_tokens += len(token_ids)
        if unchecked > 0:
            text = self.detokenizer.push(token_ids[:unchecked])
            more, found = self.stops.feed(self.detokenizer.push(token_ids[unchecked:]))
            text += more
        else:
            text, found = self.stops.feed(self.detokenizer.push(token_ids))
        if ended and found is None:
            rest, found = self.stops.feed(self.detokenizer.finish())
            text += rest + ("" if found else self.stops.flush())
        return text, found


class OutputProcessor:
    """One entry for each sequence whose answer somebody waits for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._answers: dict[int, AnswerReader] = {}

    def open(self, seq_id: int, request: Request, index: int) -> None:
        self._answers[seq_id] = AnswerReader.of(request, index, self._tokenizer)

    def close(self, seq_id: int) -> None:
        self._answers.pop(seq_id, None)

    def process(self, progress: Progress) -> OutputDelta | None:
        """Return what the client is to see, or None when nobody waits for it any more."""
        answer = self._answers.get(progress.seq_id)
        if answer is None:
            return None
        text, stop_string = answer.read(progress.token_ids, progress.finish_reason is not None)
        stopped = stop_string is not None
        return OutputDelta(
            request_id=answer.request.request_id,
            index=answer.index,
            token_ids=progress.token_ids,
            text=text,
            logprobs=progress.logprobs,
            finish_reason="stop" if stopped else progress.finish_reason,
            stop_reason=stop_string if stopped else progress.stop_token,
            prompt_logprobs=progress.prompt_logprobs if answer.index == 0 else None,
            num_cached_tokens=progress.num_cached_tokens,
            error=progress.error,
            embedding=progress.embedding,
        )
