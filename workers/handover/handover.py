"""Joins an engine and a connector: prompts bring blocks from elsewhere, or pass theirs on."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from functools import partial

from stafette.kvtransfer.connectors.connector import KvConnector, KvRequest, KvShare
from stafette.kvtransfer.errors import KvTransferError
from stafette.kvtransfer.layout import BlockLayout
from stafette.workers.async_engine import AsyncEngine
from stafette.workers.config import EngineConfig
from stafette.workers.engine import Engine
from stafette.workers.errors import ConfigError, EngineDead, RequestError
from stafette.workers.handover.exports import Exported, Exports
from stafette.workers.handover.imports import Imports, Pulled
from stafette.workers.request import OutputDelta, Request
from stafette.workers.runner.runner import KvLayout

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
        self._taken: dict[str, KvRequest] = {}  # what imports have begun, until its request ends

    @classmethod
    async def start(cls, engine: AsyncEngine, connector: KvConnector) -> "Handover":
        """Let the connector use the engine's KV memory."""
        handover = cls(engine, connector)
        runner = engine.engine.executor.runner
        share = KvShare(runner.kv_memory(), block_layout(runner.kv_layout))
        await asyncio.to_thread(connector.register, [share])
        await engine.call(handover._attach)
        return handover

    async def generate(
        self, request: Request, params: Params = _NOTHING
    ) -> AsyncGenerator[OutputDelta, None]:
        """Like the engine's, with what the connector can bring of the prompt."""
        try:
            async with aclosing(self._answer(request, params)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self.engine.post(partial(self._end, request.request_id))

    async def prefill(self, request: Request, params: Params) -> Exported:
        """Compute a prompt, and pass its blocks on while that lasts. The answer is dropped.

        Ask for one token: by then the prompt is computed.
        """
        await self._check(request, params)
        name, reason = request.request_id, ""
        await self.engine.call(partial(self._begin_export, request, params))
        try:
            async with aclosing(self._answer(request, params)) as deltas:
                async for delta in deltas:
                    reason = delta.error or ""
        except BaseException:
            self.engine.post(partial(self._abort_export, name))
            raise
        return await self.engine.call(lambda engine: self.exports.finish(name, reason))

    async def offer(self, request: Request, params: Params) -> Exported:
        """Pass on what is cached of a prompt, and compute nothing."""
        await self._check(request, params)

        def offer(engine: Engine) -> Exported:
            self._begin_export(request, params, engine)
            return self.exports.finish(request.request_id, "the rest is not cached")

        return await self.engine.call(offer)

    async def close(self) -> None:
        """End what is under way, and take the KV memory back. Safe to call twice."""
        with suppress(EngineDead):
            await self.engine.call(self._detach)
        await asyncio.to_thread(self.connector.close)
        with suppress(EngineDead):  # what the connector has let go comes back before this answer
            await self.engine.call(lambda engine: None)

    async def _answer(self, request: Request, params: Params) -> AsyncGenerator[OutputDelta, None]:
        try:
            await self._pull(request, params)
            async with aclosing(self.engine.generate(request)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self.engine.post(partial(self.imports.cancel, request.request_id))

    async def _pull(self, request: Request, params: Params) -> Pulled:
        """Bring a prompt's blocks here; they stay pinned until the request is admitted."""
        await self._check(request, params)
        if request.params.prompt_logprobs is not None:
            return Pulled(0, 0)  # such a prompt is computed from its first token on
        return await self.engine.ask(partial(self._begin_import, request, params))

    async def _check(self, request: Request, params: Params) -> None:
        await self.engine.check(request)
        try:
            self.connector.check(params)
        except KvTransferError as error:
            raise RequestError("params", params, str(error)) from error

    # What follows runs in the engine's thread.

    def _attach(self, engine: Engine) -> None:
        engine.after_step = self._after_step

    def _detach(self, engine: Engine) -> None:
        engine.after_step = lambda: None
        self.imports.close()
        self.exports.close()

    def _after_step(self) -> None:
        self.exports.after_step()
        self.imports.after_step()

    def _begin_import(
        self, request: Request, params: Params, engine: Engine, reply: Callable[[Pulled], None]
    ) -> None:
        wanted = kv_request(engine, request, params)
        self.imports.begin(wanted, reply)
        self._taken[wanted.request_id] = wanted

    def _begin_export(self, request: Request, params: Params, engine: Engine) -> None:
        self.exports.begin(kv_request(engine, request, params))

    def _abort_export(self, request_id: str) -> None:
        self.exports.finish(request_id, "the request was aborted")

    def _end(self, request_id: str) -> None:
        taken = self._taken.pop(request_id, None)
        if taken is not None:
            self.connector.finish(taken)


def check_config(config: EngineConfig) -> None:
    """Raise ConfigError for flags with which an engine cannot hand KV over."""
    for name in ("share_kv_memory", "enable_prefix_caching"):
        if not getattr(config, name):
            raise ConfigError(name, False, "must be set for KV to be handed over")
    if config.tensor_parallel_size > 1:
        remedy = "must be 1 for KV to be handed over: the other ranks' memory is out of reach here"
        raise ConfigError("tensor_parallel_size", config.tensor_parallel_size, remedy)


def block_layout(layout: KvLayout) -> BlockLayout:
    """Return the layout of an engine's blocks as peers know it."""
    return BlockLayout(
        layout.num_layers, layout.num_kv_heads, layout.block_size, layout.head_dim, layout.dtype
    )


def kv_request(engine: Engine, request: Request, params: Params) -> KvRequest:
    """Return what a connector may know of a request."""
    hashes, extras = engine.prompt_hashes(request)
    size = engine.config.block_size
    return KvRequest(
        request.request_id, request.prompt_token_ids, hashes, size, extras, dict(params)
    )
