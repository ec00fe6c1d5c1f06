"""From OpenAI's messages to those that chat templates read."""

import json
from collections.abc import Sequence
from typing import Any

from stafette.platform.frontend.errors import cannot, wrong
from stafette.platform.frontend.protocol.chat import (
    AssistantMessage,
    Content,
    Message,
    OtherPart,
    ToolCall,
    ToolMessage,
)

TemplateMessage = dict[str, Any]


def template_messages(messages: Sequence[Message]) -> list[TemplateMessage]:
    """Return plain dictionaries: text instead of parts, arguments as objects instead of JSON."""
    return [_plain(message, f"messages[{place}]") for place, message in enumerate(messages)]


def _plain(message: Message, path: str) -> TemplateMessage:
    role = "system" if message.role == "developer" else message.role
    plain: TemplateMessage = {"role": role, "content": text_of(message.content, path)}
    if message.name is not None:
        plain["name"] = message.name
    if isinstance(message, ToolMessage):
        plain["tool_call_id"] = message.tool_call_id
    if isinstance(message, AssistantMessage):
        if message.reasoning_content is not None:
            plain["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            calls = enumerate(message.tool_calls)
            plain["tool_calls"] = [_call(call, f"{path}.tool_calls[{i}]") for i, call in calls]
    return plain


def text_of(content: Content | None, path: str) -> str:
    """Return the text of a message's content; Unsupported for pictures and sounds."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for place, part in enumerate(content):
        if isinstance(part, OtherPart):
            remedy = "this model reads text only: send parts of type text"
            raise cannot(f"{path}.content[{place}].type", part.type, remedy)
        texts.append(part.text)
    return "\n".join(texts)


def _call(call: ToolCall, path: str) -> dict[str, Any]:
    arguments = arguments_of(call.function.arguments, f"{path}.function.arguments")
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def arguments_of(text: str, path: str) -> dict[str, Any]:
    """Return a call's arguments, as templates want them."""
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise wrong(path, text, f"must be JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise wrong(path, text, "must be a JSON object")
    return arguments
