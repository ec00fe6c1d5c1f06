"""One try to get an answer from the workers it was placed on."""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from stafette.kvtransfer.connectors.p2p.messages import PARAMS, Give, Take
from stafette.platform.serving.fleet import WorkerFleet
from stafette.router.router import Placement
from stafette.workers.errors import RequestError, WorkerLost
from stafette.workers.request import OutputDelta, Request
from stafette.workers.service.client import WorkerClient
from stafette.workers.service.frames import Order

_log = logging.getLogger(__name__)
_ID_BYTES = 16

Params = dict[str, object]


class HandoverFailed(Exception):
    """The worker that was to compute the prompt did not; nothing of the answer is there yet."""


class Attempt:
    """WorkerLost says that the answer is to go on elsewhere, from where it stands."""

    def __init__(
        self, request: Request, placement: Placement, fleet: WorkerFleet, prefill_timeout_s: float
    ) -> None:
        self.request = request
        self.placement = placement
        self._fleet = fleet
        self._prefill_timeout_s = prefill_timeout_s
        self._helpers: list[asyncio.Task[None]] = []

    async def run(self) -> AsyncGenerator[OutputDelta, None]:
        placement = self.placement
        decode, decode_params = self._client(placement.decode), Params()
        compute_params = decode_params
        if placement.prefill is not None:
            hand_off = secrets.token_hex(_ID_BYTES)
            await self._fleet.introduce(placement.prefill, placement.decode)
            decode_params = _take(hand_off, placement.prefill)
            compute_params = _give(hand_off, placement.decode)
        await self._pull(placement.prefill or placement.decode, compute_params)
        if placement.prefill is not None:
            self._help(placement.prefill, compute_params, cached_only=False)
        try:
            async with aclosing(self._answer(decode, decode_params)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            await self._end_helpers()

    async def _pull(self, computing: str, params: Params) -> None:
        """Let whoever computes the prompt get blocks that a third worker holds."""
        source = self.placement.source
        if source is None:
            return
        hand_off = secrets.token_hex(_ID_BYTES)
        try:
            await self._fleet.introduce(source.target, computing)
        except WorkerLost as error:
            _log.info("no blocks are pulled: %s", error)
            return
        taken = _take(hand_off, source.target, source.first + source.blocks)
        params[PARAMS] = _own(params) | _own(taken)
        self._help(source.target, _give(hand_off, computing), cached_only=True)

    async def _answer(
        self, decode: WorkerClient, params: Params
    ) -> AsyncGenerator[OutputDelta, None]:
        """Yield the decode worker's answer, as long as nobody fails whom it waits for."""
        stream = decode.generate(Order(self.request, params))
        async with aclosing(stream):
            first = asyncio.ensure_future(anext(stream, None))
            try:
                await self._await_first(first)
                delta = await first
            finally:
                if not first.done():
                    first.cancel()
                    with suppress(asyncio.CancelledError, Exception):
                        await first
            if delta is not None:
                yield delta
            async for delta in stream:
                yield delta

    async def _await_first(self, first: "asyncio.Future[OutputDelta | None]") -> None:
        """Return when the answer begins; raise what a helper ended with before that."""
        waiting: set[asyncio.Future[Any]] = set(self._helpers)
        while not first.done():
            done, _ = await asyncio.wait({first, *waiting}, return_when=asyncio.FIRST_COMPLETED)
            for helper in done & waiting:
                waiting.discard(helper)
                helper.result()

    def _help(self, name: str, params: Params, cached_only: bool) -> None:
        self._helpers.append(asyncio.create_task(self._prefill(name, params, cached_only)))

    async def _prefill(self, name: str, params: Params, cached_only: bool) -> None:
        """Have a prompt computed, or what is cached of it passed on, by another worker."""
        request = replace(
            self.request,
            request_id=f"{self.request.request_id}-{'c' if cached_only else 'p'}",
            params=replace(self.request.params, max_tokens=None, min_tokens=0),
        )
        order = Order(_for_one_token(request), params, cached_only)
        try:
            await self._client(name).prefill(order, self._prefill_timeout_s)
        except (WorkerLost, RequestError) as error:
            if not cached_only:  # without what was cached there, it is computed
                raise HandoverFailed(str(error)) from error
            _log.info("%s passes nothing on: %s", name, error)

    async def _end_helpers(self) -> None:
        for helper in self._helpers:
            helper.cancel()
        await asyncio.gather(*self._helpers, return_exceptions=True)

    def _client(self, name: str) -> WorkerClient:
        client = self._fleet.clients.get(name)
        if client is None:
            raise WorkerLost("worker", name, "it is not connected")
        return client


def _for_one_token(request: Request) -> Request:
    """A prompt is computed when its first token is there."""
    params = replace(
        request.params,
        max_tokens=len(request.output_token_ids) + 1,
        logprobs=None,
        prompt_logprobs=None,
        structured=None,
        ignore_eos=True,
    )
    return replace(request, params=params)


def _take(hand_off: str, source: str, num_blocks: int | None = None) -> Params:
    return Take(hand_off, (source,), num_blocks).params()


def _give(hand_off: str, reader: str) -> Params:
    return Give(hand_off, (reader,)).params()


def _own(params: Mapping[str, object]) -> dict[str, object]:
    own = params.get(PARAMS, {})
    assert isinstance(own, dict)
    return own
