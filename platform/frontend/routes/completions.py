"""POST /v1/completions."""

import time
from typing import Any

from stafette.platform.frontend.answering.completions import (
    CompletionChunks,
    CompletionForm,
    WholeCompletion,
)
from stafette.platform.frontend.asgi import Exchange
from stafette.platform.frontend.choosing import sampling_params, sampling_values, structured_of
from stafette.platform.frontend.errors import wrong
from stafette.platform.frontend.ids import new_id
from stafette.platform.frontend.plans import Plan, Planner, refuse
from stafette.platform.frontend.prompts import Prompt, Prompts
from stafette.platform.frontend.protocol.completions import CompletionRequest
from stafette.platform.frontend.routes.services import Services
from stafette.workers.sampling.params import SamplingParams
from stafette.workers.weights.tokenizer import Tokenizer

_REFUSED = {"suffix": "models here continue a text, and cannot fill a gap: leave it out"}


async def completions(services: Services, exchange: Exchange) -> None:
    body = await services.read(exchange, CompletionRequest)
    exchange.answer_id = new_id("cmpl-")
    _check(body)
    plan = await _plan(body, services.planner, exchange)
    tokenizer, created = services.served.tokenizer, int(time.time())
    form = _form(body, plan, tokenizer)
    if body.stream:
        options = body.stream_options
        usage = options is not None and options.include_usage
        chunks = CompletionChunks(plan, tokenizer, created, form, include_usage=usage)
        await services.serving.stream(exchange, plan, chunks)
    else:
        answer = WholeCompletion(plan, tokenizer, created, form)
        await services.serving.whole(exchange, plan, answer)


def _check(body: CompletionRequest) -> None:
    refuse({"suffix": body.suffix}, _REFUSED)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise wrong("best_of", body.best_of, f"must be n = {body.n or 1}: ask for n and choose")
    if body.max_tokens == 0 and not body.echo:
        raise wrong("max_tokens", 0, "must be at least 1, unless the prompt is echoed")
    if body.stream_options is not None and not body.stream:
        raise wrong("stream_options", body.stream_options.model_dump(), "needs stream: true")


async def _plan(body: CompletionRequest, planner: Planner, exchange: Exchange) -> Plan:
    texts = prompts_of(body.prompt)
    planner.check_answers(body.n or 1, len(texts))
    prompts = [await as_prompt(planner.prompts, text, body.add_special_tokens) for text in texts]
    for prompt in prompts:
        planner.prompts.check_length(prompt, "prompt")
    plan = planner.of_prompts(body, exchange, prompts, _params(body, planner))
    plan.makes_tokens = body.max_tokens != 0
    plan.fields = {"structured": "structured_outputs", "prompt_token_ids": "prompt"}
    return plan


def _params(body: CompletionRequest, planner: Planner) -> SamplingParams:
    values: dict[str, Any] = sampling_values(body) | {"n": body.n or 1}
    values["structured"] = structured_of(None, body.structured_outputs)
    if body.logprobs is not None:
        values["logprobs"] = body.logprobs
        if body.echo:
            values["prompt_logprobs"] = body.logprobs
    most = 1 if body.max_tokens == 0 else body.max_tokens  # the engine always makes one
    return sampling_params(values, most, planner.served)


def _form(body: CompletionRequest, plan: Plan, tokenizer: Tokenizer) -> CompletionForm:
    prompts = None
    if body.echo:
        prompts = [
            tokenizer.decode(request.prompt_token_ids) if request.prompt is None else request.prompt
            for request in plan.requests
        ]
    return CompletionForm(prompts=prompts, num_top=body.logprobs, adds=plan.makes_tokens)


def prompts_of(given: str | list[Any]) -> list[str | list[int]]:
    """Return the prompts in a field that may hold one or several, as text or tokens."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given]
    return given


async def as_prompt(prompts: Prompts, given: str | list[int], special: bool = True) -> Prompt:
    return await prompts.of_text(given, special) if isinstance(given, str) else Prompt(given)
