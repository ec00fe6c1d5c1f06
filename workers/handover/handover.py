"""Joins an engine and a connector: prompts bring blocks from elsewhere, or pass theirs on."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial

from stafette.kvtransfer.connectors.connector import KvConnector, KvRequest
from stafette.kvtransfer.errors import KvTransferError
from stafette.kvtransfer.events import AllCleared, EventBatch
from stafette.workers.async_engine import AsyncEngine
from stafette.workers.config import EngineConfig
from stafette.workers.engine import Engine
from stafette.workers.errors import ConfigError, EngineDead, RequestError
from stafette.workers.handover.exports import Exported, Exports
from stafette.workers.handover.imports import Imports, Pulled
from stafette.workers.request import OutputDelta, Request
from stafette.workers.runner.runner import kv_share

Params = Mapping[str, object]  # by connector: what came along with a request
_NOTHING: Params = {}


class Handover:
    """Used by the coroutines of the engine's event loop. Make it with `await Handover.start`.

    Close it before the engine and before the connector's agent.
    """

    def __init__(self, engine: AsyncEngine, connector: KvConnector) -> None:
        check_config(engine.engine.config)
        self.engine = engine
        self.connector = connector
        self.imports = Imports(engine.engine, connector, engine.post)
        self.exports = Exports(engine.engine, connector, engine.post)
        self._steps_told = 0

    @classmethod
    async def start(cls, engine: AsyncEngine, connector: KvConnector) -> "Handover":
        """Let the connector use the engine's KV memory."""
        handover = cls(engine, connector)
        memories = await engine.call(lambda core: core.executor.runner.kv_memories())
        shares = [kv_share(memory) for memory in memories]
        connector.on_kv_events(engine.engine.kv_events.add)
        await asyncio.to_thread(connector.register, shares)
        await engine.call(handover._attach)
        return handover

    async def generate(
        self, request: Request, params: Params = _NOTHING
    ) -> AsyncGenerator[OutputDelta, None]:
        """Like the engine's, with what the connector can bring of the prompt."""
        wanted = await self._prepare(request, params)
        try:
            async with aclosing(self._answer(request, wanted)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self.engine.post(partial(self._end_import, wanted, True))

    async def prefill(self, request: Request, params: Params) -> Exported:
        """Compute a prompt, and pass its blocks on while that lasts. The answer is dropped.

        Ask for one token: by then the prompt is computed.
        """
        wanted, reason, cached = await self._prepare(request, params), "", 0
        try:
            await self.engine.call(lambda engine: self.exports.begin(wanted))
            async with aclosing(self._answer(request, wanted)) as deltas:
                async for delta in deltas:
                    reason, cached = delta.error or "", max(cached, delta.num_cached_tokens)
        except BaseException:
            self.engine.post(partial(self._abort_export, wanted))
            raise
        finally:
            self.engine.post(partial(self._end_import, wanted, False))
        exported = await self.engine.call(lambda engine: self.exports.finish(wanted, reason))
        return replace(exported, num_cached_tokens=cached)

    async def offer(self, request: Request, params: Params) -> Exported:
        """Pass on what is cached of a prompt, and compute nothing."""
        wanted = await self._prepare(request, params)

        def offer(engine: Engine) -> Exported:
            self.exports.begin(wanted)
            return self.exports.finish(wanted, "the rest is not cached")

        return await self.engine.call(offer)

    async def fetch(self, request: Request, params: Params) -> Pulled:
        """Bring a prompt's blocks here, for a request that comes soon; compute nothing."""
        wanted = await self._prepare(request, params)
        loop = asyncio.get_running_loop()
        pulled: asyncio.Future[Pulled] = loop.create_future()

        def reply(found: Pulled) -> None:
            loop.call_soon_threadsafe(_settle, pulled, found)

        try:
            await self.engine.call(lambda engine: self.imports.begin(wanted, reply))
            return await pulled
        finally:
            self.engine.post(partial(self._end_import, wanted, True))

    async def close(self) -> None:
        """End what is under way, and take the KV memory back. Safe to call twice."""
        with suppress(EngineDead):
            await self.engine.call(self._detach)
        await asyncio.to_thread(self.connector.close)
        with suppress(EngineDead):  # what the connector has let go comes back before this answer
            await self.engine.call(lambda engine: None)

    async def _prepare(self, request: Request, params: Params) -> KvRequest:
        """Check a request; return what the connector may know of it."""
        await self.engine.check(request)
        try:
            self.connector.check(params)
        except KvTransferError as error:
            raise RequestError("params", params, str(error)) from error
        return kv_request(self.engine.engine, request, params)

    async def _answer(
        self, request: Request, wanted: KvRequest
    ) -> AsyncGenerator[OutputDelta, None]:
        """Bring the prompt's blocks here; they are pinned until the request is admitted."""
        whole = request.params.scores_prompt  # computed from its first token on
        prepare = None if whole else partial(self._import, wanted)
        async with aclosing(self.engine.generate(request, prepare)) as deltas:
            async for delta in deltas:
                yield delta

    # What follows runs in the engine's thread.

    def _attach(self, engine: Engine) -> None:
        engine.after_step = self._after_step
        engine.on_cache_change = self._on_cache_change

    def _detach(self, engine: Engine) -> None:
        engine.after_step, engine.on_cache_change = _nothing, _nothing
        self.imports.close()
        self.exports.close()

    def _after_step(self) -> None:
        self._tell_of_step(self.engine.engine)
        self.exports.after_step()
        self.imports.after_step()

    def _tell_of_step(self, engine: Engine) -> None:
        """Connectors may compare what computing takes with what loading does."""
        self._steps_told, newest = engine.samples.newest(self._steps_told)
        if newest is not None and newest[0].tokens:
            work, seconds = newest
            waiting = engine.scheduler.num_waiting
            self.connector.note_step(work.tokens, seconds * work.of_prompts, waiting)

    def _on_cache_change(self, batch: EventBatch) -> None:
        if any(isinstance(event, AllCleared) for event in batch.events):
            self.connector.reset_cache()
        if self.connector.saves_all:
            self.exports.pass_on_all(batch.events)

    def _import(self, wanted: KvRequest, then: Callable[[], None]) -> None:
        self.imports.begin(wanted, lambda pulled: then())

    def _end_import(self, wanted: KvRequest, finish: bool) -> None:
        if self.imports.end(wanted) and finish:
            self.connector.finish(wanted)

    def _abort_export(self, wanted: KvRequest) -> None:
        self.exports.finish(wanted, "the request was aborted")


def _settle(future: "asyncio.Future[Pulled]", found: Pulled) -> None:
    if not future.done():
        future.set_result(found)


def _nothing(*_: object) -> None:
    pass


def check_config(config: EngineConfig) -> None:
    """Raise ConfigError for flags with which an engine cannot hand KV over."""
    for name in ("share_kv_memory", "enable_prefix_caching"):
        if not getattr(config, name):
            raise ConfigError(name, False, "must be set for KV to be handed over")


def kv_request(engine: Engine, request: Request, params: Params) -> KvRequest:
    """Return what a connector may know of a request."""
    hashes, extras = engine.prompt_hashes(request)
    size = engine.config.block_size
    return KvRequest(
        request.request_id, request.prompt_token_ids, hashes, size, extras, dict(params)
    )
