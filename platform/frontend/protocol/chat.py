"""POST /v1/chat/completions: the request."""

from typing import Annotated, Any, Literal

from pydantic import Field

from stafette.platform.frontend.protocol.base import Fields, RoutedBody
from stafette.platform.frontend.protocol.sampling import (
    Count,
    JsonObjectFormat,
    SamplingFields,
    StreamOptions,
    TextFormat,
)

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


class TextPart(Fields):
    type: Literal["text"]
    text: str


class OtherPart(Fields):
    """Images, audio and files: read, and refused with 422, for the models here take text."""

    type: Literal["image_url", "input_audio", "file", "video_url"]


Content = str | list[Annotated[TextPart | OtherPart, Field(discriminator="type")]]


class SystemMessage(Fields):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Fields):
    role: Literal["user"]
    content: Content
    name: str | None = None


class CalledFunction(Fields):
    name: str
    arguments: str = Field(description="JSON, as the model wrote it.")


class ToolCall(Fields):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Fields):
    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None


class ToolMessage(Fields):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class Function(Fields):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema.")
    strict: bool | None = None


class Tool(Fields):
    type: Literal["function"]
    function: Function


class NamedFunction(Fields):
    name: str


class NamedTool(Fields):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class JsonSchema(Fields):
    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Fields):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class ChatRequest(RoutedBody, SamplingFields):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = Field(None, description="Older name of max_completion_tokens.")
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = Field(None, description="Passed to the chat template.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Passed to the chat template, such as enable_thinking."
    )

    # Refused with 422, so that nobody waits for what never comes.
    functions: list[Any] | None = Field(None, description="Older form of tools.")
    function_call: Any | None = Field(None, description="Older form of tool_choice.")
    modalities: list[str] | None = None
    audio: Any | None = None
    web_search_options: Any | None = None
