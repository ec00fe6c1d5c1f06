"""From what clients send to the model's tokens. Long texts are worked on beside the event loop."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stafette.platform.frontend.errors import BadRequest, wrong
from stafette.platform.frontend.messages import TemplateMessage
from stafette.platform.frontend.served import Served
from stafette.platform.frontend.tool_prompt import explain_tools

Result = TypeVar("Result")
_SHORT_CHARS = 16_384  # some 2 ms of tokenizing: as much as the event loop may be held up
_OURS = frozenset({"messages", "tools", "add_generation_prompt"})


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: list[int]
    text: str | None = None  # None: it came as tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a chat template is given."""

    messages: Sequence[TemplateMessage]
    tools: Sequence[dict[str, Any]] = ()  # in OpenAI's shape
    variables: Mapping[str, Any] | None = None  # for the template alone
    add_generation_prompt: bool = True


class Prompts:
    """Makes prompts for one model."""

    def __init__(self, served: Served) -> None:
        self._tokenizer = served.tokenizer
        self._max_model_len = served.max_model_len
        templates = served.tokenizer.chat_templates.values()
        self._template_knows_tools = any("tools" in template for template in templates)

    async def of_text(self, text: str, add_special_tokens: bool = True) -> Prompt:
        tokens = await _beside(len(text), lambda: self._tokenizer.encode(text, add_special_tokens))
        return Prompt(tokens, text)

    async def of_conversation(self, talk: Conversation) -> Prompt:
        """Return the prompt by the model's chat template; BadRequest when it refuses."""
        if not self._tokenizer.has_chat_template:
            remedy = "this model has no chat template: use /v1/completions"
            raise wrong("messages", len(talk.messages), remedy)
        for name in talk.variables or ():
            if name in _OURS:
                raise wrong("chat_template_kwargs", name, "has a field of its own: use that")
        size = sum(len(message["content"]) for message in talk.messages)
        return await _beside(size, lambda: self._render(talk))

    def check_length(self, prompt: Prompt, field: str) -> None:
        """Refuse a prompt that leaves no room for an answer."""
        count = len(prompt.token_ids)
        if count >= self._max_model_len:
            message = (
                f"{field} = {count} tokens: the model's context is {self._max_model_len}, "
                "the answer included; shorten it"
            )
            raise BadRequest(message, param=field, code="context_length_exceeded")
        if count == 0:
            raise wrong(field, prompt.text or [], "is empty: send at least one token")

    def _render(self, talk: Conversation) -> Prompt:
        messages, tools = list(talk.messages), list(talk.tools)
        if not self._template_knows_tools:
            messages, tools = explain_tools(messages, tools), []
        text = self._tokenizer.apply_chat_template(
            messages, tools or None, talk.add_generation_prompt, **(talk.variables or {})
        )
        return Prompt(self._tokenizer.encode(text, add_special_tokens=False), text)


async def _beside(size: int, work: Callable[[], Result]) -> Result:
    """Do short work at once, and long work in a thread."""
    return work() if size <= _SHORT_CHARS else await asyncio.to_thread(work)
