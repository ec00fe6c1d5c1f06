"""POST /tokenize and /detokenize: vLLM's requests and answers."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from stafette.platform.frontend.protocol.base import Fields, RequestBody
from stafette.platform.frontend.protocol.chat import Message, Tool
from stafette.platform.frontend.protocol.sampling import TokenId


class TokenizeRequest(RequestBody):
    """Either `prompt` or `messages`."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool = Field(True, description="For `prompt`; a template has its own.")
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _either(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("must have either prompt or messages")
        return self


class TokenizeAnswer(Fields):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(RequestBody):
    tokens: list[TokenId]


class DetokenizeAnswer(Fields):
    prompt: str
