"""POST /v1/chat/completions."""

import time
from typing import Any

from stafette.platform.frontend.answering.chat import WholeChat
from stafette.platform.frontend.answering.chat_chunks import ChatChunks
from stafette.platform.frontend.asgi import Exchange
from stafette.platform.frontend.choosing import sampling_values, structured_of
from stafette.platform.frontend.errors import wrong
from stafette.platform.frontend.ids import new_id
from stafette.platform.frontend.messages import template_messages
from stafette.platform.frontend.plans import Planner, Talk, refuse
from stafette.platform.frontend.prompts import Conversation
from stafette.platform.frontend.protocol.chat import ChatRequest, NamedTool, Tool
from stafette.platform.frontend.routes.services import Services
from stafette.platform.frontend.tooling import ToolChoice, plan_tools

_REFUSED = {
    "functions": "is OpenAI's older form: send tools",
    "function_call": "is OpenAI's older form: send tool_choice",
    "audio": "this model writes text only",
    "web_search_options": "there is no web search here: offer a tool of your own",
}


async def chat_completions(services: Services, exchange: Exchange) -> None:
    body = await services.read(exchange, ChatRequest)
    exchange.answer_id = new_id("chatcmpl-")
    _check(body, services.planner)
    plan = await services.planner.of_talk(_talk(body, services), exchange)
    tokenizer, created = services.served.tokenizer, int(time.time())
    if body.stream:
        options = body.stream_options
        usage = options is not None and options.include_usage
        chunks = ChatChunks(plan, tokenizer, created, include_usage=usage)
        await services.serving.stream(exchange, plan, chunks)
    else:
        await services.serving.whole(exchange, plan, WholeChat(plan, tokenizer, created))


def _check(body: ChatRequest, planner: Planner) -> None:
    refuse({name: getattr(body, name) for name in _REFUSED}, _REFUSED)
    others = [kind for kind in body.modalities or () if kind != "text"]
    refuse({"modalities": others}, {"modalities": "this model writes text only"})
    if body.stream_options is not None and not body.stream:
        raise wrong("stream_options", body.stream_options.model_dump(), "needs stream: true")
    if body.top_logprobs and not body.logprobs:
        raise wrong("top_logprobs", body.top_logprobs, "needs logprobs: true")
    planner.check_answers(body.n or 1)


def _talk(body: ChatRequest, services: Services) -> Talk:
    tools = plan_tools(template_tools(body.tools), _choice(body), services.served.tool_parser)
    uses_format = body.structured_outputs is None
    return Talk(
        body=body,
        conversation=Conversation(
            messages=template_messages(body.messages),
            tools=tools.shown,
            variables=_variables(body),
        ),
        values=_values(body),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        tools=tools,
        structured=structured_of(body.response_format, body.structured_outputs),
        prompt_field="messages",
        structured_field="response_format" if uses_format else "structured_outputs",
    )


def _values(body: ChatRequest) -> dict[str, Any]:
    values = sampling_values(body) | {"n": body.n or 1}
    return values | {"logprobs": body.top_logprobs or 0} if body.logprobs else values


def _variables(body: ChatRequest) -> dict[str, Any]:
    effort = {"reasoning_effort": body.reasoning_effort} if body.reasoning_effort else {}
    return {**effort, **(body.chat_template_kwargs or {})}


def template_tools(tools: list[Tool] | None) -> list[dict[str, Any]]:
    """Return the tools as the client sent them, without what it left out."""
    return [tool.model_dump(exclude_unset=True) for tool in tools or ()]


def _choice(body: ChatRequest) -> ToolChoice:
    parallel = body.parallel_tool_calls is not False
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        return ToolChoice(mode="named", name=name, parallel=parallel)
    return ToolChoice(mode=body.tool_choice or "auto", parallel=parallel)
