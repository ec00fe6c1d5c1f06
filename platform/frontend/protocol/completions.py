"""POST /v1/completions: the request."""

from typing import Annotated

from pydantic import Field

from stafette.platform.frontend.protocol.base import RoutedBody
from stafette.platform.frontend.protocol.sampling import SamplingFields, StreamOptions, TokenId

_MAX_INT = 2**31 - 1
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompt = (
    str
    | TokenIds
    | Annotated[list[str], Field(min_length=1)]
    | Annotated[list[TokenIds], Field(min_length=1)]
)


class CompletionRequest(RoutedBody, SamplingFields):
    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, le=_MAX_INT)] | None = Field(
        16, description="0 together with echo: score the prompt, and add nothing."
    )
    n: Annotated[int, Field(ge=1)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = Field(None, description="Must be n.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool = Field(False, description="Begin the answer with the prompt.")
    suffix: str | None = Field(None, description="Refused with 422: models here only continue.")
    add_special_tokens: bool = Field(True, description="To prompts given as text.")
