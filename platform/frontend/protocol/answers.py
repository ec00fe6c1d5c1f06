"""What the API answers, for the published document; the answers themselves are made of text."""

from typing import Any, Literal

from pydantic import Field

from stafette.platform.frontend.protocol.base import Fields

FinishReason = Literal["stop", "length", "tool_calls", "abort"]


class ErrorDetail(Fields):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Fields):
    error: ErrorDetail


class PromptDetails(Fields):
    cached_tokens: int


class CompletionDetails(Fields):
    reasoning_tokens: int


class Usage(Fields):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(Fields):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Fields):
    content: list[TokenLogprob]


class CalledFunction(Fields):
    name: str
    arguments: str


class Call(Fields):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Fields):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None
    refusal: None = None


class ChatChoice(Fields):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None


class ChatCompletion(Fields):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    placement: dict[str, Any] | None = None


class CompletionLogprobs(Fields):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Fields):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None


class Completion(Fields):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    placement: dict[str, Any] | None = None


class InputDetails(PromptDetails):
    cache_write_tokens: int


class ResponseUsage(Fields):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: CompletionDetails
    total_tokens: int


class Response(Fields):
    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    output: list[dict[str, Any]] = Field(description="message, function_call, reasoning")
    usage: ResponseUsage | None
    incomplete_details: dict[str, Any] | None
    error: dict[str, Any] | None


class Embedding(Fields):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Fields):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Fields):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class Model(Fields):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class Models(Fields):
    object: Literal["list"]
    data: list[Model]


class Workers(Fields):
    object: Literal["list"]
    data: list[dict[str, Any]]
    requests: dict[str, int]


class Decisions(Fields):
    decisions: list[dict[str, Any]]
    counters: dict[str, Any]


class Health(Fields):
    status: Literal["ok"]


class Version(Fields):
    version: str
