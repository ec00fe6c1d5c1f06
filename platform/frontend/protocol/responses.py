"""POST /v1/responses: the request. Nothing is stored, so each one brings the whole conversation."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from stafette.platform.frontend.protocol.base import Fields, RoutedBody
from stafette.platform.frontend.protocol.chat import ToolName
from stafette.platform.frontend.protocol.sampling import Count, JsonObjectFormat, TextFormat


class InputText(Fields):
    type: Literal["input_text", "output_text", "text"]
    text: str


class Refusal(Fields):
    type: Literal["refusal"]
    refusal: str


class OtherInput(Fields):
    """Read, and refused with 422, for the models here take text."""

    type: Literal["input_image", "input_file", "input_audio"]


InputContent = str | list[Annotated[InputText | Refusal | OtherInput, Field(discriminator="type")]]


class InputMessage(Fields):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: InputContent


class FunctionCallItem(Fields):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionOutputItem(Fields):
    type: Literal["function_call_output"]
    call_id: str
    output: InputContent


class ReasoningText(Fields):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Fields):
    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None


def _kind(item: Any) -> str | None:
    """A message need not say that it is one."""
    kind = item.get("type", "message") if isinstance(item, Mapping) else item.type
    return kind if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


class FunctionTool(Fields):
    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Fields):
    type: Literal["function"]
    name: str


class SchemaFormat(Fields):
    type: Literal["json_schema"]
    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Fields):
    format: (
        Annotated[
            TextFormat | JsonObjectFormat | SchemaFormat,
            Field(discriminator="type"),
        ]
        | None
    ) = None


class ReasoningOptions(Fields):
    effort: str | None = None


class ResponsesRequest(RoutedBody):
    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = Field(
        None, description="message.output_text.logprobs is known; others change nothing."
    )

    # Refused with 422: nothing is stored here.
    previous_response_id: str | None = None
    conversation: Any | None = None
    background: bool | None = None
    prompt: Any | None = None
