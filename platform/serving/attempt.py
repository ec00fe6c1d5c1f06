"""One try to get an answer from the workers it was placed on."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from stafette.platform.serving.fleet import WorkerFleet
from stafette.platform.serving.passing import FAILURES, HandOff, Params, both, for_one_token
from stafette.router.router import Placement
from stafette.workers.errors import WorkerLost
from stafette.workers.request import OutputDelta, Request
from stafette.workers.service.client import WorkerClient
from stafette.workers.service.frames import Order

_log = logging.getLogger(__name__)


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
        self._cached_tokens = 0  # that the prefill worker did not compute, as far as is known

    def run(self) -> AsyncGenerator[OutputDelta, None]:
        """Return what comes; no generator more than needed stands in a token's way."""
        placement = self.placement
        decode = self._fleet.client(placement.decode)
        if placement.prefill is None and placement.source is None:
            return decode.generate(self._order(decode, Params()))
        return self._run(decode)

    async def _run(self, decode: WorkerClient) -> AsyncGenerator[OutputDelta, None]:
        placement, decode_params = self.placement, Params()
        compute_params = decode_params
        if placement.prefill is not None:
            hand_off = HandOff(self._fleet, placement.prefill, placement.decode)
            await hand_off.introduce()
            decode_params, compute_params = hand_off.take(), hand_off.give()
        try:
            compute_params |= await self._pull(compute_params)
            if placement.prefill is not None:
                self._help(self._prefill(placement.prefill, compute_params))
            async with aclosing(self._answer(decode, decode_params)) as deltas:
                async for delta in deltas:
                    yield self._with_truth(delta)
        finally:
            await self._end_helpers()

    def _with_truth(self, delta: OutputDelta) -> OutputDelta:
        """What was computed elsewhere for this answer is no cache hit, though found here."""
        if self.placement.prefill is None:
            return delta
        return replace(delta, num_cached_tokens=self._cached_tokens)

    def cut(self) -> None:
        """Let `run` end with Cut, behind what has come."""
        with suppress(WorkerLost):  # which it ends with, then
            self._fleet.client(self.placement.decode).cut(self.request.request_id)

    async def _pull(self, params: Params) -> Params:
        """Let whoever computes the prompt get blocks that a third worker holds."""
        source, placement = self.placement.source, self.placement
        if source is None:
            return params
        hand_off = HandOff(self._fleet, source.target, placement.prefill or placement.decode)
        try:
            await hand_off.introduce()
        except WorkerLost as error:
            _log.info("no blocks are pulled: %s", error)
            return params
        self._help(hand_off.pass_on(self.request, self._prefill_timeout_s))
        return both(params, hand_off.take(source.first + source.blocks))

    async def _answer(
        self, decode: WorkerClient, params: Params
    ) -> AsyncGenerator[OutputDelta, None]:
        """Yield the decode worker's answer, as long as nobody fails whom it waits for."""
        stream = decode.generate(self._order(decode, params))
        async with aclosing(stream):
            if self._helpers:
                first = await self._first_of(stream)
                if first is not None:
                    yield first
            async for delta in stream:
                yield delta

    def _order(self, decode: WorkerClient, params: Params) -> Order:
        return Order(self.request, params, last_resort=decode.name in self._fleet.draining)

    async def _first_of(self, stream: AsyncGenerator[OutputDelta, None]) -> OutputDelta | None:
        """Return an answer's beginning; raise what a helper ended with before that."""
        first = asyncio.ensure_future(anext(stream, None))
        try:
            await self._await_first(first)
            return await first
        finally:
            if not first.done():
                first.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await first
            elif not first.cancelled():
                first.exception()  # seen, though a helper's failure may be what is told

    async def _await_first(self, first: "asyncio.Future[OutputDelta | None]") -> None:
        """Return when it has come, or raise what a helper ended with."""
        waiting: set[asyncio.Future[Any]] = set(self._helpers)
        while not first.done():
            done, _ = await asyncio.wait({first, *waiting}, return_when=asyncio.FIRST_COMPLETED)
            for helper in done & waiting:
                waiting.discard(helper)
                helper.result()

    def _help(self, work: Coroutine[Any, Any, None]) -> None:
        self._helpers.append(asyncio.create_task(work))

    async def _prefill(self, name: str, params: Params) -> None:
        """Have the prompt computed by another worker."""
        named = replace(self.request, request_id=f"{self.request.request_id}-p")
        order = Order(for_one_token(named), params)
        try:
            outcome = await self._fleet.client(name).prefill(order, self._prefill_timeout_s)
        except FAILURES as error:
            raise HandoverFailed(str(error)) from error
        cached = outcome.get("num_cached_tokens")
        self._cached_tokens = cached if isinstance(cached, int) else 0

    async def _end_helpers(self) -> None:
        for helper in self._helpers:
            helper.cancel()
        await asyncio.gather(*self._helpers, return_exceptions=True)
