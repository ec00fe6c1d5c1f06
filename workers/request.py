"""What a caller asks of the engine, and what it gets back."""

from dataclasses import dataclass, field
from typing import Literal

from stafette.workers.batch import TokenLogprobs
from stafette.workers.errors import RequestError
from stafette.workers.sampling.params import SamplingParams

MAX_PRIORITY = 1_000_000
FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and how to continue it. Checked when made, for it may come from anywhere."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    output_token_ids: list[int] = field(default_factory=list)  # answered before, elsewhere
    prompt: str | None = None  # as text, when it came as text
    priority: int = 0  # lower is served earlier
    lora: str | None = None  # an adapter's name
    cache_salt: str | None = None  # requests with different salts never share KV
    detokenize: bool = True
    traceparent: str = ""  # the span that it is a part of, as W3C writes it; empty: not traced

    @property
    def token_ids(self) -> list[int]:
        """All that is known: the prompt, and the answer so far."""
        return [*self.prompt_token_ids, *self.output_token_ids]

    def __post_init__(self) -> None:
        _check_type("prompt_token_ids", self.prompt_token_ids, list)
        _check_type("output_token_ids", self.output_token_ids, list)
        _check_type("params", self.params, SamplingParams)
        if self.output_token_ids:
            self._check_resumed(len(self.output_token_ids))
        _check_type("priority", self.priority, int)
        if abs(self.priority) > MAX_PRIORITY:
            remedy = f"must be in -{MAX_PRIORITY}..{MAX_PRIORITY}"
            raise RequestError("priority", self.priority, remedy)
        if self.params.stop and not self.detokenize:
            remedy = "is looked for in text: set detokenize, or use stop_token_ids"
            raise RequestError("stop", self.params.stop, remedy)
        for name in ("request_id", "prompt", "lora", "cache_salt"):
            _check_text(name, getattr(self, name), required=name == "request_id")

    def _check_resumed(self, num_tokens: int) -> None:
        params = self.params
        if params.n > 1:
            raise RequestError("n", params.n, "must be 1 where an answer is gone on with")
        if params.max_tokens is not None and num_tokens >= params.max_tokens:
            remedy = f"is not shorter than max_tokens = {params.max_tokens}: the answer is over"
            raise RequestError("output_token_ids", f"{num_tokens} tokens", remedy)


def _check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise RequestError(name, value, f"must be of type {kind.__name__}")


def _check_text(name: str, value: object, required: bool) -> None:
    if value is None and not required:
        return
    _check_type(name, value, str)
    try:
        str(value).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can carry
        raise RequestError(name, value, f"must be valid Unicode: {error.reason}") from None


@dataclass(slots=True)  # changed only by whoever was given it; a frozen one takes six times as long
class OutputDelta:
    """What one step added to one of a request's `n` answers."""

    request_id: str
    index: int
    token_ids: list[int]
    text: str
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the token or string that stopped it
    prompt_logprobs: list[TokenLogprobs] | None = None
    num_cached_tokens: int = 0  # of the prompt
    error: str | None = None
    embedding: bytes | None = None  # of the prompt: float32, little-endian


@dataclass(slots=True)
class RequestMetrics:
    """Moments in the life of a request, in seconds of the engine's clock."""

    arrival: float
    first_token: float | None = None
    finished: float | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` answers, so far."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        return None if self.logprobs is None else sum(item.logprob for item in self.logprobs)

    def add(self, delta: OutputDelta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            self.logprobs = (self.logprobs or []) + delta.logprobs
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason
        self.error = delta.error


@dataclass(slots=True)
class RequestOutput:
    """A request with its answers, so far."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    prompt_logprobs: list[TokenLogprobs] | None = None
    num_cached_tokens: int = 0

    @classmethod
    def of(cls, request: Request, arrival: float) -> "RequestOutput":
        outputs = [CompletionOutput(index) for index in range(request.params.n)]
        metrics = RequestMetrics(arrival)
        return cls(request.request_id, request.prompt, request.prompt_token_ids, outputs, metrics)

    @property
    def finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs)

    def add(self, delta: OutputDelta, now: float) -> None:
        self.outputs[delta.index].add(delta)
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        if delta.token_ids and self.metrics.first_token is None:
            self.metrics.first_token = now
        if self.finished:
            self.metrics.finished = now
