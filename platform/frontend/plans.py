"""From a request to what the generator is asked, and how its answer is read."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stafette.platform.frontend.asgi import Exchange
from stafette.platform.frontend.choosing import sampling_params
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.errors import cannot, wrong
from stafette.platform.frontend.generator import Generator, Hints
from stafette.platform.frontend.parsing.answer import AnswerParser
from stafette.platform.frontend.parsing.reasoning import BEGIN, END, ThinkParser
from stafette.platform.frontend.prompts import Conversation, Prompt, Prompts
from stafette.platform.frontend.protocol.base import RoutedBody
from stafette.platform.frontend.served import Served
from stafette.platform.frontend.tooling import ToolUse
from stafette.workers.request import Request
from stafette.workers.sampling.params import SamplingParams, StructuredOutput

_LEAST_S = 0.001
_THINKS_AT_END = 64  # characters of the prompt's end in which <think> may stand open


@dataclass(slots=True, kw_only=True)
class Plan:
    """`requests`: one for each prompt, each with `n` answers; an answer's index counts them all."""

    answer_id: str
    model: str  # as the answer names it
    requests: list[Request]
    hints: Hints
    ends_at: float | None  # the deadline, by the event loop's clock
    explain: bool
    fields: Mapping[str, str] = field(default_factory=dict)  # the engine's names -> the API's
    new_parser: Callable[[], AnswerParser] | None = None  # None: text is text
    makes_tokens: bool = True  # False: what the engine makes all the same is not shown
    hides_ends: bool = False  # special tokens are asked for only to be read by the parser

    @property
    def answers_per_prompt(self) -> int:
        return self.requests[0].params.n

    @property
    def num_answers(self) -> int:
        return len(self.requests) * self.answers_per_prompt

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(request.prompt_token_ids) for request in self.requests)


@dataclass(slots=True, kw_only=True)
class Talk:
    """A conversation to answer, whichever endpoint it came by."""

    body: RoutedBody
    conversation: Conversation
    values: dict[str, Any]  # for SamplingParams
    max_tokens: int | None
    tools: ToolUse
    structured: StructuredOutput | None
    prompt_field: str  # the API's names
    structured_field: str


class Planner:
    """Makes plans for one served model."""

    def __init__(self, served: Served, generator: Generator, config: FrontendConfig) -> None:
        self.served = served
        self.prompts = Prompts(served)
        self._generator = generator
        self._config = config

    async def of_talk(self, talk: Talk, exchange: Exchange) -> Plan:
        """Plan the answer to a conversation."""
        self._adapter(talk.body)  # an unknown model is refused before any work is done
        prompt = await self.prompts.of_conversation(talk.conversation)
        self.prompts.check_length(prompt, talk.prompt_field)
        structured = _structured(talk)
        reads_special = talk.tools.needs_special_tokens
        skips = talk.values.get("skip_special_tokens", True)
        values = talk.values | {"structured": structured}
        values["skip_special_tokens"] = skips and not reads_special
        params = sampling_params(values, talk.max_tokens, self.served)
        plan = self.of_prompts(talk.body, exchange, [prompt], params)
        plan.new_parser = self._parser(talk.tools, structured, prompt)
        plan.hides_ends = skips and reads_special
        forced = talk.tools.structured is not None
        plan.fields = {
            "structured": "tools" if forced else talk.structured_field,
            "prompt": talk.prompt_field,
            "logprobs": "top_logprobs",
        }
        return plan

    def of_prompts(
        self,
        body: RoutedBody,
        exchange: Exchange,
        prompts: Sequence[Prompt],
        params: SamplingParams,
    ) -> Plan:
        """Plan the continuation of prompts."""
        ids = [exchange.answer_id]
        if len(prompts) > 1:
            ids = [f"{exchange.answer_id}-{place}" for place in range(len(prompts))]
        common: dict[str, Any] = {
            "params": params,
            "priority": body.priority,
            "lora": self._adapter(body),
            "cache_salt": body.cache_salt,
        }
        requests = [
            Request(request_id=name, prompt_token_ids=each.token_ids, prompt=each.text, **common)
            for name, each in zip(ids, prompts, strict=True)
        ]
        ends_at = self._ends_at(body, exchange)
        return Plan(
            answer_id=exchange.answer_id,
            model=body.model or self.served.name,
            requests=requests,
            hints=_hints(body, exchange, ends_at),
            ends_at=ends_at,
            explain=body.explain,
        )

    def check_answers(self, n: int, num_prompts: int = 1) -> None:
        most = self._config.max_answers
        if n * num_prompts > most:
            each = f", for each of {num_prompts} prompts" if num_prompts > 1 else ""
            raise wrong("n", n, f"at most {most} answers are made at once{each}: ask for fewer")

    def _adapter(self, body: RoutedBody) -> str | None:
        if body.model in self.served.names and body.lora is None:
            return None
        loras = self._generator.status().loras
        return self.served.adapter(body.model, body.lora, loras)

    def _ends_at(self, body: RoutedBody, exchange: Exchange) -> float | None:
        deadline_s = body.deadline if body.deadline is not None else self._config.deadline_s
        if deadline_s is None:
            return None
        left_s = exchange.arrived + deadline_s - time.perf_counter()
        return asyncio.get_running_loop().time() + max(_LEAST_S, left_s)

    def _parser(
        self, tools: ToolUse, structured: StructuredOutput | None, prompt: Prompt
    ) -> Callable[[], AnswerParser] | None:
        form = self.served.reasoning_parser if structured is None else None
        if form is None and tools.new_parser is None:
            return None
        inside = _begins_inside(prompt.text or "", form)

        def parser() -> AnswerParser:
            reasoning = ThinkParser(inside) if form is not None else None
            reads_calls = tools.new_parser() if tools.new_parser is not None else None
            return AnswerParser(reasoning, reads_calls, tools.one_call)

        return parser


def _hints(body: RoutedBody, exchange: Exchange, ends_at: float | None) -> Hints:
    session = body.session or body.prompt_cache_key or ""
    if ends_at is None:
        return Hints(tenant=exchange.tenant, session=session)
    left_s = ends_at - asyncio.get_running_loop().time()
    return Hints(tenant=exchange.tenant, session=session, deadline_s=left_s)


def _structured(talk: Talk) -> StructuredOutput | None:
    if talk.structured is not None and talk.tools.structured is not None:
        remedy = "cannot be had together with a tool_choice that forces a call: give one"
        raise wrong(talk.structured_field, talk.structured.kind, remedy)
    return talk.tools.structured or talk.structured


def _begins_inside(prompt: str, form: str | None) -> bool:
    """Whether the answer begins within the thought: a template may have opened or closed it."""
    end = prompt[-_THINKS_AT_END:].rstrip()
    return end.endswith(BEGIN) or (form == "deepseek_r1" and not end.endswith(END))


def refuse(given: Mapping[str, Any], remedies: Mapping[str, str]) -> None:
    """Refuse fields that this server knows, and cannot obey; empty ones ask for nothing."""
    for name, remedy in remedies.items():
        if given.get(name):
            raise cannot(name, given[name], remedy)
