"""A client's request as a span, with the attributes that OpenTelemetry's gen_ai names."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Protocol

from stafette.platform.frontend.asgi import Exchange
from stafette.platform.frontend.plans import Plan
from stafette.workers.request import OutputDelta, Request
from stafette.workers.tracing import CURRENT, Attributes, Span

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_HEADERS = ("traceparent", "tracestate")
_WANTED = ("max_tokens", "temperature", "top_p", "top_k", "seed")

Deltas = AsyncGenerator[list[OutputDelta], None]


class RequestTracer(Protocol):
    def serve(
        self, name: str, headers: dict[str, str], attributes: Attributes, ago_s: float
    ) -> Span | None: ...


class RequestTrace:
    """One request that is traced."""

    def __init__(self, span: Span, arrived: float) -> None:
        self._span = span
        self._arrived = arrived
        self._reasons: list[str] = []
        self._cached = self._made = 0
        self._first_s: float | None = None

    def told(self, request: Request) -> Request:
        """Return the request as its workers get it."""
        return replace(request, traceparent=self._span.traceparent)

    async def watched(self, stream: Deltas) -> Deltas:
        async with aclosing(stream):
            async for deltas in stream:
                self._saw(deltas)
                yield deltas

    def end(self, plan: Plan, error: BaseException | None) -> None:
        noted: dict[str, str | int | float | list[str]] = {
            "gen_ai.response.id": plan.answer_id,
            "gen_ai.response.model": plan.model,
            "gen_ai.usage.input_tokens": plan.num_prompt_tokens,
            "gen_ai.usage.output_tokens": self._made if plan.makes_tokens else 0,
            "gen_ai.usage.cache_read.input_tokens": self._cached,
            "gen_ai.response.finish_reasons": self._reasons,
        }
        if self._first_s is not None:
            noted["gen_ai.response.time_to_first_chunk"] = self._first_s
        self._span.note(noted)
        self._span.end(error)

    def _saw(self, deltas: list[OutputDelta]) -> None:
        for delta in deltas:
            self._made += len(delta.token_ids)
            self._cached = max(self._cached, delta.num_cached_tokens)
            if delta.finish_reason is not None:
                self._reasons.append(delta.finish_reason)
        if self._first_s is None and self._made:
            self._first_s = time.perf_counter() - self._arrived
            self._span.event("first token")


@asynccontextmanager
async def traced(
    tracer: RequestTracer, exchange: Exchange, plan: Plan
) -> AsyncIterator[RequestTrace | None]:
    """Trace the request meanwhile; None where this one is not sampled."""
    trace = _begun(tracer, exchange, plan)
    if trace is None:
        yield None
        return
    try:
        yield trace
    except BaseException as error:
        trace.end(plan, error)
        raise
    trace.end(plan, None)


def _begun(tracer: RequestTracer, exchange: Exchange, plan: Plan) -> RequestTrace | None:
    operation = _OPERATIONS.get(exchange.route, "text_completion")
    headers = {name: value for name in _HEADERS if (value := exchange.header(name)) is not None}
    ago_s = time.perf_counter() - exchange.arrived
    span = tracer.serve(
        f"{operation} {plan.model}", headers, _asked(operation, exchange, plan), ago_s
    )
    if span is None:
        return None
    CURRENT.set(span)
    return RequestTrace(span, exchange.arrived)


def _asked(operation: str, exchange: Exchange, plan: Plan) -> Attributes:
    params = plan.requests[0].params
    wanted = {name: getattr(params, name) for name in _WANTED}
    known = {f"gen_ai.request.{name}": value for name, value in wanted.items() if value is not None}
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "stafette",
        "gen_ai.request.model": plan.model,
        "gen_ai.request.choice.count": plan.num_answers,
        "http.request.method": exchange.method,
        "http.route": exchange.route,
        "stafette.request.id": exchange.request_id,
        **known,
    }
