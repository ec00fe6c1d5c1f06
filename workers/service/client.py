"""A frontend's way to one life of a worker: one stream, on which all its requests go."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial

from stafette.kvtransfer.errors import MalformedMessage
from stafette.kvtransfer.strict import exact, pack, unpack
from stafette.workers.errors import Declined, EngineError, RequestError, WorkerLost
from stafette.workers.request import OutputDelta
from stafette.workers.service import frames
from stafette.workers.service.auth import Challenge, Greeting
from stafette.workers.service.beats import Beats
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.deliveries import Deliveries
from stafette.workers.service.frames import Order, Refusal
from stafette.workers.service.inbox import Inbox
from stafette.workers.service.joining import joined
from stafette.workers.service.outbox import Outbox
from stafette.workers.service.streams.registry import stream_of
from stafette.workers.service.streams.wire import StreamEnded, Wire

_log = logging.getLogger(__name__)

_REFUSALS = (OSError, MalformedMessage, StreamEnded)  # time-outs are OSErrors

OnLost = Callable[["WorkerClient", WorkerLost], None]


class Cut(EngineError):
    """Whoever asked for a stream to end has got what came before."""


class WorkerClient:
    """Make it with `await WorkerClient.connect(...)`. When its stream ends, so does every request.

    It never connects again: another connection may lead to another life of the worker.
    """

    def __init__(
        self, name: str, address: str, wire: Wire, config: ServiceConfig, on_lost: OnLost
    ) -> None:
        self.name = name
        self.address = address
        self.epoch = 0
        self.description: Mapping[str, object] = {}
        self._config = config
        self._on_lost = on_lost
        self._wire = wire
        self._numbers = itertools.count()
        self._deliveries = Deliveries()
        self._requests: dict[int, Inbox] = {}
        self._names: dict[int, str] = {}  # of these requests
        self._questions: dict[int, asyncio.Future[object]] = {}
        self._outbox = Outbox(config.max_unsent_bytes)
        self._beats = Beats(config, self._outbox)
        self.load: Mapping[str, object] = {}  # as the worker told it last
        self.load_at = 0.0  # when that was, of time.monotonic
        self.on_load: Callable[[], None] = lambda: None  # hears of each such word
        self._lost: WorkerLost | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def connect(
        cls,
        name: str,
        address: str,
        frontend: str,
        config: ServiceConfig,
        on_lost: OnLost = lambda client, error: None,
    ) -> "WorkerClient":
        """Return the client when both ends have proved themselves; WorkerLost tells why not."""
        wire = None
        try:
            # Not wait_for: Python 3.11's loses a cancel that comes together with an error.
            async with asyncio.timeout(config.handshake_timeout_s):
                wire = await stream_of(config).connect(address, config)
                client = cls(name, address, wire, config, on_lost)
                await client._greet(frontend)
        except BaseException as error:
            if wire is not None:
                await wire.close()
            if isinstance(error, _REFUSALS):
                told = f"no stream to {address}: {_told(error)}"
                raise WorkerLost("worker", name, told) from None
            raise
        client._tasks = [
            asyncio.create_task(client._watch(client._read)),
            asyncio.create_task(client._watch(partial(client._outbox.run, client._wire.write))),
            asyncio.create_task(client._watch(client._beats.run)),
        ]
        return client

    @property
    def lost(self) -> WorkerLost | None:
        """Why nothing can be asked any more."""
        return self._lost

    @property
    def num_requests(self) -> int:
        return len(self._requests) + len(self._questions)

    async def generate(self, order: Order) -> AsyncGenerator[OutputDelta, None]:
        """Yield what has come since the last look; leaving early aborts it. It brings no text.

        Cut ends it, when `cut` was called.
        """
        self._raise_if_lost()
        number, inbox = next(self._numbers), Inbox(self._deliveries)
        self._requests[number], self._names[number] = inbox, order.request.request_id
        finished = False
        try:
            self._outbox.put(frames.pack_order(frames.GENERATE, number, order))
            while not finished:
                delta = joined(await inbox.next())
                finished = delta.finish_reason is not None
                yield delta
        except (RequestError, Declined):
            finished = True
            raise
        finally:
            del self._requests[number], self._names[number]
            if not finished and self._lost is None:
                self._outbox.put(pack([frames.ABORT, number]))

    def cut(self, request_id: str) -> None:
        """End a stream of `generate` behind what has come for it: it goes on elsewhere."""
        for number, name in self._names.items():
            if name == request_id:
                self._requests[number].fail(Cut("request", request_id, "goes on elsewhere"))

    async def prefill(self, order: Order, timeout_s: float) -> Mapping[str, object]:
        """Let it compute a prompt for another worker; return what became of it."""
        number = next(self._numbers)
        message = frames.pack_order(frames.PREFILL, number, order)
        answer = await self._answer(number, message, "a prefill", timeout_s)
        return exact(answer, "outcome", dict)

    async def ask(self, operation: str, payload: object, timeout_s: float) -> object:
        """Ask anything else; WorkerLost when the answer does not come in time."""
        number = next(self._numbers)
        message = pack([frames.ASK, number, operation, payload])
        return await self._answer(number, message, operation, timeout_s)

    async def close(self) -> None:
        """End the stream, and whatever is under way on it. Safe to call twice."""
        self._fail("the stream was closed here")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._wire.close()

    async def _answer(self, number: int, message: bytes, what: str, timeout_s: float) -> object:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ask(number, message)
        except TimeoutError:
            late = f"it did not answer {what} within {timeout_s:g} s"
            raise WorkerLost("worker", self.name, late) from None

    async def _ask(self, number: int, message: bytes) -> object:
        self._raise_if_lost()
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        try:
            self._outbox.put(message)
            return await answer
        finally:
            del self._questions[number]
            if not answer.done() or answer.cancelled():
                self._outbox.put(pack([frames.ABORT, number]))

    async def _greet(self, frontend: str) -> None:
        greeting = Greeting.make(frontend)
        await self._wire.write(greeting.pack())
        challenge = Challenge.read(await self._message())
        if not challenge.is_proved(self._config.token, greeting):
            raise PermissionError("it did not prove that it knows the cluster's token")
        if challenge.name != self.name:
            raise PermissionError(f"at its address is {challenge.name}")
        self.epoch = challenge.epoch
        await self._wire.write(challenge.response(self._config.token, greeting))
        match unpack(await self._message(), self._config.max_message_bytes):
            case [dict() as description]:
                self.description = description
            case _:
                raise MalformedMessage("description", "[what the worker is]")

    async def _message(self) -> bytes:
        message = await self._wire.read()
        if message is None:
            raise MalformedMessage("stream", "more, not its end")
        return message

    async def _watch(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run one side of the stream; however it ends, the worker is lost."""
        reason = "it ended the stream"
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # of the connection, or of what the worker sent
            reason = _told(error)
        self._fail(reason)
        self._wire.abort()

    async def _read(self) -> None:
        async for message in self._wire:
            self._beats.heard()
            for each in frames.read_messages(message, self._config.max_message_bytes):
                self._hear(each)

    def _hear(self, message: list[object]) -> None:
        match message:
            case [frames.STEP, deltas]:
                for number, delta in frames.read_deltas(deltas, self._names):
                    self._requests[number].put(delta)
            case [frames.BEAT, dict() as load]:
                self.load, self.load_at = load, time.monotonic()
                self.on_load()
            case [frames.ANSWER, int(number), value]:
                self._settle(number, value, None)
            case [frames.REFUSE, int(number), refusal]:
                read = Refusal.read(refusal)
                error = RequestError(read.field, read.value, read.remedy)
                self._settle(number, None, error)
            case [frames.DECLINE, int(number), str(reason)]:
                self._settle(number, None, Declined("worker", self.name, reason))
            case _:
                raise MalformedMessage("message", "step, answer, refuse, decline or beat")

    def _settle(self, number: int, value: object, error: EngineError | None) -> None:
        answer, inbox = self._questions.get(number), self._requests.get(number)
        if inbox is not None and error is not None:
            inbox.fail(error)
        if answer is not None and not answer.done():
            answer.set_result(value) if error is None else answer.set_exception(error)

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise WorkerLost(*self._lost.args)

    def _fail(self, reason: str) -> None:
        if self._lost is not None:
            return
        self._lost = lost = WorkerLost("worker", self.name, reason)
        for inbox in self._requests.values():
            inbox.fail(lost)
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(lost)
        with suppress(Exception):
            self._on_lost(self, lost)


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__
