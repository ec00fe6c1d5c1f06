"""POST /v1/responses."""

import time
from typing import Any

from stafette.platform.frontend.answering.responses import ResponseWriter
from stafette.platform.frontend.asgi import Exchange
from stafette.platform.frontend.choosing import structured_of
from stafette.platform.frontend.errors import cannot, wrong
from stafette.platform.frontend.ids import new_id
from stafette.platform.frontend.messages import TemplateMessage, arguments_of
from stafette.platform.frontend.plans import Plan, Talk, refuse
from stafette.platform.frontend.prompts import Conversation
from stafette.platform.frontend.protocol.responses import (
    FunctionCallItem,
    FunctionOutputItem,
    FunctionTool,
    InputContent,
    InputItem,
    InputMessage,
    NamedTool,
    OtherInput,
    ReasoningItem,
    Refusal,
    ResponsesRequest,
    TextOptions,
)
from stafette.platform.frontend.routes.services import Services
from stafette.platform.frontend.tooling import ToolChoice, plan_tools

_STATELESS = "nothing is stored here: send the whole conversation in `input`"
_REFUSED = {
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "prompt": _STATELESS,
    "background": "nothing runs here that nobody waits for: leave it out",
}
_LOGPROBS = "message.output_text.logprobs"


async def responses(services: Services, exchange: Exchange) -> None:
    body = await services.read(exchange, ResponsesRequest)
    exchange.answer_id = new_id("resp_")
    refuse({name: getattr(body, name) for name in _REFUSED}, _REFUSED)
    if body.top_logprobs and _LOGPROBS not in (body.include or ()):
        raise wrong("top_logprobs", body.top_logprobs, f"needs include: ['{_LOGPROBS}']")
    plan = await services.planner.of_talk(_talk(body, services), exchange)
    writer = ResponseWriter(plan, services.served.tokenizer, int(time.time()), _told(body, plan))
    if body.stream:
        await services.serving.stream(exchange, plan, writer)
    else:
        await services.serving.whole(exchange, plan, writer)


def _talk(body: ResponsesRequest, services: Services) -> Talk:
    tools = plan_tools(
        [_tool(tool) for tool in body.tools or ()], _choice(body), services.served.tool_parser
    )
    effort = body.reasoning.effort if body.reasoning is not None else None
    wanted = body.text.format if body.text is not None else None
    return Talk(
        body=body,
        conversation=Conversation(
            messages=_messages(body),
            tools=tools.shown,
            variables={"reasoning_effort": effort} if effort else {},
        ),
        values=_values(body),
        max_tokens=body.max_output_tokens,
        tools=tools,
        structured=structured_of(wanted, None),
        prompt_field="input",
        structured_field="text.format",
    )


def _values(body: ResponsesRequest) -> dict[str, Any]:
    given = {"temperature": body.temperature, "top_p": body.top_p}
    values = {name: value for name, value in given.items() if value is not None}
    if _LOGPROBS in (body.include or ()):
        values["logprobs"] = body.top_logprobs or 0
    return values


def _choice(body: ResponsesRequest) -> ToolChoice:
    parallel = body.parallel_tool_calls is not False
    if isinstance(body.tool_choice, NamedTool):
        return ToolChoice(mode="named", name=body.tool_choice.name, parallel=parallel)
    return ToolChoice(mode=body.tool_choice or "auto", parallel=parallel)


def _tool(tool: FunctionTool) -> dict[str, Any]:
    """Return a tool in the shape of chat completions, which templates read."""
    function = tool.model_dump(exclude_unset=True, exclude={"type", "strict"})
    return {"type": "function", "function": function}


def _messages(body: ResponsesRequest) -> list[TemplateMessage]:
    messages: list[TemplateMessage] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for place, item in enumerate(body.input):
        _add(messages, item, f"input[{place}]")
    return messages


def _add(messages: list[TemplateMessage], item: InputItem, path: str) -> None:
    """Add an item; what the assistant thinks, says and calls is one message."""
    match item:
        case InputMessage():
            role = "system" if item.role == "developer" else item.role
            text = _text(item.content, f"{path}.content")
            if role == "assistant":
                _of_assistant(messages)["content"] += text
            else:
                messages.append({"role": role, "content": text})
        case FunctionCallItem():
            arguments = arguments_of(item.arguments, f"{path}.arguments")
            function = {"name": item.name, "arguments": arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            _of_assistant(messages).setdefault("tool_calls", []).append(call)
        case FunctionOutputItem():
            text = _text(item.output, f"{path}.output")
            messages.append({"role": "tool", "content": text, "tool_call_id": item.call_id})
        case ReasoningItem():
            thought = "\n".join(part.text for part in item.content or ())
            _of_assistant(messages)["reasoning_content"] = thought


def _of_assistant(messages: list[TemplateMessage]) -> TemplateMessage:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _text(content: InputContent, path: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for place, part in enumerate(content):
        if isinstance(part, OtherInput):
            remedy = "this model reads text only: send parts of type input_text"
            raise cannot(f"{path}[{place}].type", part.type, remedy)
        texts.append(part.refusal if isinstance(part, Refusal) else part.text)
    return "\n".join(texts)


def _told(body: ResponsesRequest, plan: Plan) -> dict[str, Any]:
    """Return what a response repeats of its request."""
    text = body.text or TextOptions()
    choice, params = body.tool_choice, plan.requests[0].params
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": False,
        "temperature": params.temperature,
        "text": {
            "format": text.format.model_dump(by_alias=True) if text.format else {"type": "text"}
        },
        "tool_choice": choice.model_dump() if isinstance(choice, NamedTool) else choice or "auto",
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": params.top_p,
        "truncation": "disabled",
        "user": body.user,
    }
