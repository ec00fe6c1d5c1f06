"""Runs a plan on the generator, and sends what comes: chunk by chunk, or whole."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import replace

from stafette.platform.frontend.answering.writer import StreamWriter, WholeWriter
from stafette.platform.frontend.asgi import Exchange
from stafette.platform.frontend.errors import (
    ApiError,
    ClientGone,
    InternalError,
    TimedOut,
    as_api_error,
)
from stafette.platform.frontend.generator import Generator
from stafette.platform.frontend.metrics.book import Meter, Metrics
from stafette.platform.frontend.plans import Plan
from stafette.platform.observability.request_trace import RequestTrace, RequestTracer, traced
from stafette.workers.errors import EngineError
from stafette.workers.request import OutputDelta

logger = logging.getLogger(__name__)
Deltas = AsyncGenerator[list[OutputDelta], None]


class Serving:
    def __init__(self, generator: Generator, metrics: Metrics) -> None:
        self.generator = generator
        self.metrics = metrics
        self.tracer: RequestTracer | None = None  # None: no traces

    async def stream(self, exchange: Exchange, plan: Plan, writer: StreamWriter) -> None:
        """Send an answer as events. Until its first token nothing is sent: errors have a status."""
        try:
            await self._send(exchange, plan, writer)
            await exchange.end(writer.end().encode())
        except ClientGone:
            raise
        except (ApiError, EngineError) as error:
            told = as_api_error(error, plan.fields)
            if not exchange.started:
                raise told from error
            if isinstance(error, TimedOut):
                await exchange.end(writer.cut("deadline").encode())
                return
            logger.warning("%s failed after it had begun: %s", plan.answer_id, error)
            await exchange.end(writer.fail(told).encode())

    async def whole(self, exchange: Exchange, plan: Plan, writer: WholeWriter) -> None:
        """Send an answer in one piece."""
        try:
            async with self._running(exchange, plan) as (stream, meter):
                async for deltas in stream:
                    meter.saw(deltas)
                    writer.write(deltas)
        except EngineError as error:
            raise as_api_error(error, plan.fields) from error
        await exchange.respond_json(writer.whole(self._placement(plan)))

    async def _send(self, exchange: Exchange, plan: Plan, writer: StreamWriter) -> None:
        """One write for all that has come since the last."""
        async with self._running(exchange, plan) as (stream, meter):
            async for deltas in stream:
                meter.saw(deltas)
                if exchange.started:
                    text = writer.write(deltas)
                else:
                    text = writer.begin(self._placement(plan)) + writer.write(deltas)
                    await exchange.start_events()
                if text and not exchange.write_now(data := text.encode()):
                    await exchange.write(data)

    @asynccontextmanager
    async def _running(self, exchange: Exchange, plan: Plan) -> AsyncIterator[tuple[Deltas, Meter]]:
        """Give the plan's deltas; abort them when the client leaves or the time is up."""
        meter = Meter(self.metrics, time.perf_counter, exchange.arrived, plan)
        timeout = asyncio.timeout_at(plan.ends_at)
        try:
            async with self._traced(exchange, plan) as trace:
                async with exchange.while_connected(), timeout:
                    async with aclosing(self._deltas(plan, trace)) as stream:
                        yield stream, meter
        except TimeoutError:
            if timeout.expired():
                raise _timed_out(exchange) from None
            raise
        finally:
            meter.close(plan.num_answers)
        if meter.num_finished < plan.num_answers:
            raise InternalError("the answer broke off: whoever made it ended without a reason")

    def _traced(
        self, exchange: Exchange, plan: Plan
    ) -> AbstractAsyncContextManager[RequestTrace | None]:
        return nullcontext() if self.tracer is None else traced(self.tracer, exchange, plan)

    def _deltas(self, plan: Plan, trace: RequestTrace | None) -> Deltas:
        asked = plan.requests if trace is None else map(trace.told, plan.requests)
        streams = [self.generator.stream(request, plan.hints) for request in asked]
        whole = streams[0] if len(streams) == 1 else merged(streams, plan.answers_per_prompt)
        return whole if trace is None else trace.watched(whole)

    def _placement(self, plan: Plan) -> dict[str, object] | None:
        placed = self.generator.placement(plan.requests[0].request_id) if plan.explain else None
        return None if placed is None else dict(placed)


async def merged(streams: Sequence[Deltas], answers_each: int) -> Deltas:
    """Yield the deltas of several requests as they come, their answers numbered through."""
    news: asyncio.Queue[list[OutputDelta] | Exception | None] = asyncio.Queue()

    async def pump(stream: Deltas, offset: int) -> None:
        try:
            async with aclosing(stream):
                async for deltas in stream:
                    news.put_nowait([replace(d, index=offset + d.index) for d in deltas])
            news.put_nowait(None)
        except Exception as error:
            news.put_nowait(error)

    numbered = enumerate(streams)
    pumps = [asyncio.create_task(pump(each, place * answers_each)) for place, each in numbered]
    try:
        left = len(pumps)
        while left:
            deltas = await news.get()
            if isinstance(deltas, Exception):
                raise deltas
            if deltas is None:
                left -= 1
            else:
                yield deltas
    finally:
        for each in pumps:
            each.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


def _timed_out(exchange: Exchange) -> TimedOut:
    seconds = time.perf_counter() - exchange.arrived
    message = f"the deadline has passed: no whole answer in {seconds:.2f} s; allow more"
    return TimedOut(message, param="deadline")
