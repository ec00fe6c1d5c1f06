"""AsyncEngine: the engine for servers. It steps in a thread of its own; the event loop only waits.

Commands go in through a queue, each step's deltas come back in one call to the loop.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from stafette.workers.building import build_engine
from stafette.workers.config import EngineConfig
from stafette.workers.engine import Engine
from stafette.workers.errors import EngineDead, EngineError, RequestError
from stafette.workers.request import OutputDelta, Request
from stafette.workers.stats import EngineStats

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
Prepare = Callable[[Callable[[], None]], None]
JOIN_TIMEOUT_S = 30.0
_STALLED_S = 0.002  # between two steps that can do nothing


class AsyncEngine:
    """Many coroutines, one engine. Make it with `await AsyncEngine.start(config)`."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine
        self._loop = loop
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[str, _Stream] = {}  # touched by the event loop only
        self._calls: set[asyncio.Future[Any]] = set()  # so is this: they must not wait for ever
        self._preparing: dict[str, Request] = {}  # not queued yet; touched by the engine's thread
        self._error: EngineError | None = None
        self._thread = threading.Thread(target=self._run, name="stafette-engine", daemon=True)
        self._thread.start()

    @classmethod
    async def start(cls, config: EngineConfig) -> "AsyncEngine":
        engine = await asyncio.to_thread(build_engine, config)
        return cls(engine, asyncio.get_running_loop())

    async def generate(
        self, request: Request, prepare: Prepare | None = None
    ) -> AsyncGenerator[OutputDelta, None]:
        """Yield what each step adds; leaving early, by break or cancellation, aborts it."""
        async with aclosing(self.stream(request, prepare)) as news:
            async for deltas in news:
                for delta in deltas:
                    yield delta

    async def stream(
        self, request: Request, prepare: Prepare | None = None
    ) -> AsyncGenerator[list[OutputDelta], None]:
        """Like `generate`, but yield at once all that has come since the last look.

        `prepare` runs in the engine's thread before the request is queued: it calls what it is
        given, in that thread, as soon as the request may be.
        """
        self._raise_if_dead()
        await self.check(request)
        stream = self._open_stream(request)
        self._inbox.put(lambda: self._begin(request, prepare))
        try:
            while stream.unfinished:
                if deltas := stream.still_wanted(await stream.next()):
                    yield deltas
        finally:
            del self._streams[request.request_id]
            if stream.unfinished:
                self._inbox.put(lambda: self._abort(request.request_id))

    async def abort(self, request_id: str) -> None:
        """End a request; its stream gets a last delta with the reason `abort`."""
        stream = self._streams.get(request_id)
        if stream is not None:
            deltas = [
                OutputDelta(request_id, index, [], "", finish_reason="abort")
                for index in sorted(stream.unfinished)
            ]
            stream.put(deltas)
            await self.call(lambda engine: self._abort(request_id))

    async def call(self, function: Callable[[Engine], Result]) -> Result:
        """Run something on the engine between two steps, in its thread."""
        self._raise_if_dead()
        answer: asyncio.Future[Result] = self._loop.create_future()
        self._calls.add(answer)
        answer.add_done_callback(self._calls.discard)

        def run() -> None:
            try:
                result = function(self.engine)
            except Exception as error:
                self._tell(_set_exception, answer, error)
            else:
                self._tell(_set_result, answer, result)

        self._inbox.put(run)
        return await answer

    def post(self, function: Callable[[], None]) -> None:
        """Run something soon, between two steps, in the engine's thread. Any thread may call."""
        self._inbox.put(function)

    def stats(self) -> EngineStats:
        return self.engine.stats()

    @property
    def is_alive(self) -> bool:
        return self._error is None and self._thread.is_alive()

    async def close(self) -> None:
        """Stop the thread and free the device. Whoever still waits gets EngineDead."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join, JOIN_TIMEOUT_S)
        self._fail(EngineDead("engine", "closed", "start another one"))

    async def check(self, request: Request) -> None:
        """Refuse a wrong request. A grammar may take long to compile: not on the event loop."""
        if request.params.structured is None:
            self.engine.check(request)
        else:
            await asyncio.to_thread(self.engine.check, request)

    def _open_stream(self, request: Request) -> "_Stream":
        self._raise_if_dead()  # it may have ended while the request was checked
        if request.request_id in self._streams:
            remedy = "is in flight already: choose another id"
            raise RequestError("request_id", request.request_id, remedy)
        stream = _Stream(set(range(request.params.n)))
        self._streams[request.request_id] = stream
        return stream

    def _raise_if_dead(self) -> None:
        if self._error is not None:
            raise self._error

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        try:
            while self._take_commands():
                deltas = self.engine.step()
                if deltas:
                    self._tell(self._deliver, deltas)
        except Exception as error:
            logger.exception("the engine stopped")
            dead = EngineDead("engine", repr(error), "restart it; the log has the reason")
            self._tell(self._fail, dead)
        finally:
            self.engine.close()

    def _take_commands(self) -> bool:
        """Run what waits; sleep only when there is nothing to do. False: the end."""
        while True:
            try:
                command = self._next_command()
            except queue.Empty:
                return True
            if command is None:
                return False
            command()

    def _next_command(self) -> Callable[[], None] | None:
        if not self.engine.has_work:
            return self._inbox.get()
        if self.engine.is_stalled:  # whoever holds its blocks may give them back by a command
            return self._inbox.get(timeout=_STALLED_S)
        return self._inbox.get_nowait()

    def _begin(self, request: Request, prepare: Prepare | None) -> None:
        try:
            if prepare is None:
                self.engine.add(request)
            else:
                self._preparing[request.request_id] = request
                prepare(lambda: self._prepared(request))
        except EngineError as error:  # checked before; a duplicate id may slip through
            self._refuse(request, error)

    def _prepared(self, request: Request) -> None:
        if self._preparing.get(request.request_id) is request:  # else it was aborted meanwhile
            del self._preparing[request.request_id]
            self._begin(request, None)

    def _refuse(self, request: Request, error: EngineError) -> None:
        failed = [
            OutputDelta(request.request_id, index, [], "", finish_reason="error", error=str(error))
            for index in range(request.params.n)
        ]
        self._tell(self._deliver, failed)

    def _abort(self, request_id: str) -> None:
        self._preparing.pop(request_id, None)
        self.engine.abort(request_id)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            logger.debug("the event loop is closed; nobody waits for this answer")

    # And this on the event loop.

    def _deliver(self, deltas: list[OutputDelta]) -> None:
        by_request: dict[str, list[OutputDelta]] = {}
        for delta in deltas:
            by_request.setdefault(delta.request_id, []).append(delta)
        for request_id, own in by_request.items():
            if stream := self._streams.get(request_id):
                stream.put(own)

    def _fail(self, error: EngineError) -> None:
        self._error = self._error or error
        for stream in self._streams.values():
            stream.fail(error)
        for answer in self._calls:
            _set_exception(answer, error)


@dataclass(slots=True)
class _Stream:
    """A mailbox that hands over all that has come since the last look."""

    unfinished: set[int]  # answers
    _deltas: list[OutputDelta] = field(default_factory=list)
    _error: EngineError | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, deltas: list[OutputDelta]) -> None:
        self._deltas += deltas
        self._news.set()

    def still_wanted(self, deltas: list[OutputDelta]) -> list[OutputDelta]:
        """Book what has finished; drop what was on its way when the answer was aborted."""
        wanted = []
        for delta in deltas:
            if delta.index not in self.unfinished:
                continue
            if delta.finish_reason is not None:
                self.unfinished.discard(delta.index)
            wanted.append(delta)
        return wanted

    def fail(self, error: EngineError) -> None:
        self._error = error
        self._news.set()

    async def next(self) -> list[OutputDelta]:
        """Return what has come; an error, which stays, is raised behind what came before it."""
        await self._news.wait()
        if not self._deltas and self._error is not None:
            raise self._error
        if self._error is None:
            self._news.clear()
        deltas, self._deltas = self._deltas, []
        return deltas


def _set_result(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
