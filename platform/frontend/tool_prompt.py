"""Explains tools to models whose chat template knows none, in Hermes' form."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stafette.platform.frontend.messages import TemplateMessage

_EXPLANATION = """\
You may call functions to answer. Their signatures, one JSON object a line:
<tools>
{tools}
</tools>
To call one, write a JSON object with its name and arguments within <tool_call> tags:
<tool_call>
{{"name": "function-name", "arguments": {{"argument": "value"}}}}
</tool_call>"""


def explain_tools(
    messages: Sequence[TemplateMessage], tools: Sequence[Mapping[str, Any]]
) -> list[TemplateMessage]:
    """Return the conversation with tools, calls and results in words that any template renders."""
    plain = [_in_words(message) for message in messages]
    if not tools:
        return plain
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    explanation = _EXPLANATION.format(tools=lines)
    if plain and plain[0]["role"] == "system":
        text = f"{plain[0]['content']}\n\n{explanation}"
        return [{**plain[0], "content": text}, *plain[1:]]
    return [{"role": "system", "content": explanation}, *plain]


def _in_words(message: TemplateMessage) -> TemplateMessage:
    if message["role"] == "tool":
        text = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": text}
    if not message.get("tool_calls"):
        return message
    calls = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in message["tool_calls"]
    ]
    said = [message["content"]] if message["content"] else []
    return {"role": "assistant", "content": "\n".join([*said, *calls])}
