"""One frontend's stream, as the worker sees it: its requests, side by side."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, nullcontext, suppress
from functools import partial
from typing import Any

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import pack, text, whole
from stafette.workers.errors import Declined, EngineDead, RequestError
from stafette.workers.logging_context import REQUEST
from stafette.workers.request import OutputDelta
from stafette.workers.service import frames
from stafette.workers.service.beats import Beats
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.frames import NUMBER_END, Order, Refusal
from stafette.workers.service.outbox import Outbox, Write
from stafette.workers.service.serving import Served
from stafette.workers.tracing import Span, WorkerTracer, ending, noted

_log = logging.getLogger(__name__)
_MAX_OPERATION_BYTES = 64


class Session:
    """Ends with the stream: what is still under way then is aborted."""

    def __init__(
        self,
        served: Served,
        config: ServiceConfig,
        frontend: str,
        tracer: WorkerTracer | None = None,
    ) -> None:
        self._served = served
        self._config = config
        self._frontend = frontend
        self._tracer = tracer
        self._outbox = Outbox(config.max_unsent_bytes)
        self._beats = Beats(config, self._outbox)
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by the frontend's number
        self._dead = asyncio.Event()

    @property
    def num_requests(self) -> int:
        return len(self._tasks)

    def announce(self) -> None:
        """Let the frontend know at once how things are here."""
        self._beats.hurry()

    async def run(self, messages: AsyncIterator[bytes], write: Write) -> None:
        """Serve until the frontend leaves; MalformedMessage, Overflow, Silence say why we do."""
        reading = asyncio.create_task(self._read(messages))
        writing = asyncio.create_task(self._outbox.run(write))
        beating = asyncio.create_task(self._beats.run(self._served.load))
        dying = asyncio.create_task(self._dead.wait())
        ends = {reading, writing, beating, dying}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._end({*ends, *self._tasks.values()})
        for task in (reading, writing, beating):
            if not task.cancelled():
                task.result()

    async def finish(self) -> None:
        """Wait until nothing is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    async def _read(self, messages: AsyncIterator[bytes]) -> None:
        async for data in messages:
            self._beats.heard()
            for message in frames.read_messages(data, self._config.max_message_bytes):
                self._hear(message)

    def _hear(self, message: list[object]) -> None:
        match message:
            case [(frames.GENERATE | frames.PREFILL) as kind, number, *order]:
                self._begin(str(kind), whole(number, "number", NUMBER_END), order)
            case [frames.ABORT, number]:
                task = self._tasks.get(whole(number, "number", NUMBER_END))
                if task is not None:
                    task.cancel()
            case [frames.BEAT, _]:
                pass
            case [frames.ASK, number, operation, payload]:
                name = text(operation, "operation", _MAX_OPERATION_BYTES)
                asked = whole(number, "number", NUMBER_END)
                self._start(asked, partial(self._answer, asked, name, payload))
            case _:
                raise MalformedMessage("message", "generate, prefill, abort, ask or beat")

    def _begin(self, kind: str, number: int, parts: list[object]) -> None:
        if len(parts) != 4:
            raise MalformedMessage(kind, "[number, prompt, output, params, options]")
        if number in self._tasks:
            raise MalformedMessage("number", "one that is not in use")
        try:
            if len(self._tasks) >= self._config.max_requests:
                limit = self._config.max_requests
                reason = f"takes at most {limit} requests at a time on one stream"
                raise Declined("worker", self._served.name, reason)
            order = frames.read_order(*parts)
        except RequestError as error:
            self._refuse(number, error)
            return
        except Declined as error:
            self._decline(number, error)
            return
        serve = self._generate if kind == frames.GENERATE else self._prefill
        self._start(number, partial(serve, number, order))

    def _start(self, number: int, serve: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.ensure_future(self._serve(number, serve))
        self._tasks[number] = task
        task.add_done_callback(lambda _: self._tasks.pop(number, None))

    async def _serve(self, number: int, serve: Callable[[], Awaitable[None]]) -> None:
        try:
            await serve()
        except RequestError as error:
            self._refuse(number, error)
        except Declined as error:
            self._decline(number, error)
        except EngineDead:  # all that this stream can say now is its end
            self._dead.set()
        except Exception:  # this request's failure is nobody else's
            _log.exception("request %d of %s failed", number, self._frontend)
            failure = RequestError("request", number, "failed at the worker: its log says why")
            self._refuse(number, failure)

    async def _generate(self, number: int, order: Order) -> None:
        REQUEST.set(order.request.request_id)
        if (span := self._span("decode", order)) is not None:
            with ending(span):
                await self._bring(number, noted(self._served.generate(order), span))
        else:
            await self._bring(number, self._served.generate(order))

    async def _prefill(self, number: int, order: Order) -> None:
        REQUEST.set(order.request.request_id)
        span = self._span("prefill", order)
        with ending(span) if span is not None else nullcontext():
            outcome = await self._served.prefill(order)
        self._outbox.put(pack([frames.ANSWER, number, dict(outcome)]))

    async def _bring(self, number: int, answer: AsyncGenerator[OutputDelta, None]) -> None:
        async with aclosing(answer) as deltas:
            async for delta in deltas:
                self._outbox.put_delta(number, delta)

    def _span(self, name: str, order: Order) -> Span | None:
        """Begin this worker's part of a request that is traced."""
        traceparent = order.request.traceparent
        if self._tracer is None or not traceparent:
            return None
        name = "kv move" if order.cached_only else name
        return self._tracer.begin(name, order.request.request_id, traceparent)

    async def _answer(self, number: int, operation: str, payload: object) -> None:
        run = self._served.operations().get(operation)
        if run is None:
            raise RequestError("operation", operation, "is none of this worker's")
        self._outbox.put(pack([frames.ANSWER, number, await run(payload)]))

    def _refuse(self, number: int, error: RequestError) -> None:
        self._outbox.put(pack([frames.REFUSE, number, Refusal.of(error).pack()]))

    def _decline(self, number: int, error: Declined) -> None:
        self._outbox.put(pack([frames.DECLINE, number, error.remedy]))

    async def _end(self, tasks: set[asyncio.Task[Any]]) -> None:
        for task in tasks:
            if not task.done():
                task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, Exception):
                await task
