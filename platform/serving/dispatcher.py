"""Serves requests from a fleet: chooses workers, and goes on elsewhere when one dies."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

from stafette.kvtransfer.blocks import Extras
from stafette.platform.frontend.errors import TooMany, Unavailable
from stafette.platform.frontend.generator import Hints, Status
from stafette.platform.serving.answering import AnswerText
from stafette.platform.serving.attempt import Attempt, HandoverFailed
from stafette.platform.serving.fleet import WorkerFleet
from stafette.platform.serving.merging import merge
from stafette.router import request as placing
from stafette.router.errors import NoCandidate, Rejected, RouterError, UnknownReservation
from stafette.router.hashing import PromptHasher
from stafette.router.router import KvRouter, Placement
from stafette.workers.errors import WorkerLost
from stafette.workers.request import OutputDelta, Request
from stafette.workers.weights.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

_REMEMBERED = 1_000  # requests whose placement can be asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchConfig:
    model: str  # by which workers and router name it
    max_attempts: int = 8  # of one answer, each on workers that were there when it began
    wait_s: float = 10.0  # for a worker, when none can take a request
    prefill_timeout_s: float = 120.0
    retry_after_s: float = 1.0  # what a client is told when all are full


@dataclass(slots=True)
class DispatchCounters:
    requests: int = 0
    attempts: int = 0
    moved: int = 0  # answers that went on elsewhere after their worker was lost
    handed_over: int = 0  # prompts that another worker computed
    handover_failures: int = 0


class Dispatcher:
    """A `Generator` for the frontend; used by its event loop."""

    def __init__(
        self, config: DispatchConfig, fleet: WorkerFleet, tokenizer: Tokenizer, hasher: PromptHasher
    ) -> None:
        self.counters = DispatchCounters()
        self._config = config
        self._fleet = fleet
        self._router: KvRouter = fleet.router
        self._tokenizer = tokenizer
        self._hasher = hasher
        self._placed: OrderedDict[str, str] = OrderedDict()  # request -> its latest attempt

    async def stream(
        self, request: Request, hints: Hints
    ) -> AsyncGenerator[list[OutputDelta], None]:
        """Yield what comes of all answers; each goes its own way, and may be moved on its own."""
        self.counters.requests += 1
        answers = [self._answer(request, index, hints) for index in range(request.params.n)]
        async with aclosing(merge(answers)) as batches:
            async for batch in batches:
                yield batch

    def placement(self, request_id: str) -> Mapping[str, Any] | None:
        decision = self._router.decisions.of(self._placed.get(request_id, ""))
        return None if decision is None else decision.to_dict()

    def status(self) -> Status:
        loads = [client.load for client in self._fleet.clients.values()]

        def total(name: str) -> int:
            return sum(value for load in loads if isinstance(value := load.get(name), int))

        blocks = sum(
            blocks
            for client in self._fleet.clients.values()
            if isinstance(blocks := client.description.get("num_blocks"), int)
        )
        return Status(
            ready=any(self._fleet.clients),
            num_running=total("running"),
            num_waiting=total("waiting"),
            kv_cache_usage=total("used_blocks") / blocks if blocks else 0.0,
        )

    async def _answer(
        self, request: Request, index: int, hints: Hints
    ) -> AsyncGenerator[OutputDelta, None]:
        """Yield one of a request's answers, from as many workers as it takes."""
        text = AnswerText(self._tokenizer, request, index)
        for number in range(self._config.max_attempts):
            wanted = _one_answer(request, index, number, text.token_ids)
            placement = await self._place(wanted, request, hints)
            attempt = Attempt(wanted, placement, self._fleet, self._config.prefill_timeout_s)
            try:
                async with aclosing(self._follow(attempt, text)) as deltas:
                    async for delta in deltas:
                        yield replace(delta, request_id=request.request_id, index=index)
                return
            except (WorkerLost, HandoverFailed) as error:
                self._note(error, placement, text)
            finally:
                with suppress(UnknownReservation):
                    self._router.free(wanted.request_id, len(text.token_ids))
        raise Unavailable(f"{self._config.max_attempts} workers were lost one after the other")

    async def _follow(
        self, attempt: Attempt, text: AnswerText
    ) -> AsyncGenerator[OutputDelta, None]:
        """Yield what one attempt brings, as text, and keep the router's books."""
        name, began, first = attempt.request.request_id, time.monotonic(), True
        self.counters.attempts += 1
        self.counters.handed_over += attempt.placement.prefill is not None
        async with aclosing(attempt.run()) as deltas:
            async for delta in deltas:
                shown = text.read(delta)
                with suppress(UnknownReservation):  # its worker is gone: we learn it soon
                    if first and delta.token_ids:
                        ttft_ms = (time.monotonic() - began) * 1e3
                        self._router.first_token(name, delta.num_cached_tokens, ttft_ms)
                        first = False
                    self._router.progress(name, len(text.token_ids))
                yield shown
                if shown.finish_reason is not None:
                    return  # by a stop string, of which the worker knows nothing

    async def _place(self, wanted: Request, request: Request, hints: Hints) -> Placement:
        """Return where it goes; wait a while for a worker when there is none."""
        salt, lora = request.cache_salt or "", request.lora or ""
        extras = Extras(lora=lora, salt=salt)
        chain = (
            self._hasher.chain(
                wanted.token_ids, self._config.model, extras, f"{hints.tenant}/{hints.session}"
            )
            if hints.session
            else self._hasher.chain(wanted.token_ids, self._config.model, extras)
        )
        asked = placing.Request(
            request_id=wanted.request_id,
            chain=chain,
            prompt_tokens=len(wanted.token_ids),
            expected_output_tokens=self._expected_tokens(request),
            model=self._config.model,
            lora=lora,
            tenant=hints.tenant,
            session=hints.session,
            priority=-request.priority,  # here the lower is the sooner
        )
        placement = await self._await_place(asked)
        self._remember(request.request_id, wanted.request_id)
        if request.params.scores_prompt:  # KV from elsewhere would be of no use to it
            return placement._replace(prefill=None, source=None)
        return placement

    def _expected_tokens(self, request: Request) -> int | None:
        """Clients ask for far more than they get: their limit tells only when it is small."""
        limit = request.params.max_tokens
        return limit if limit is not None and limit < self._router.expected_output_tokens else None

    async def _await_place(self, asked: placing.Request) -> Placement:
        deadline = time.monotonic() + self._config.wait_s
        while True:
            self._fleet.changed.clear()
            try:
                return self._router.place(asked)
            except Rejected as error:
                raise TooMany(str(error), retry_after_s=error.retry_after_s) from error
            except NoCandidate as error:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise Unavailable(str(error)) from error
            with suppress(TimeoutError):
                await asyncio.wait_for(self._fleet.changed.wait(), min(left_s, 0.1))

    def _note(self, error: Exception, placement: Placement, text: AnswerText) -> None:
        """An attempt came to nothing, or to a part: the next one goes on from there."""
        _log.warning("%s: going on elsewhere after %d tokens", error, len(text.token_ids))
        if isinstance(error, HandoverFailed):
            self.counters.handover_failures += 1
        else:
            self.counters.moved += 1
        if isinstance(error, WorkerLost) and error.value == placement.decode:
            self._router_forget(placement.decode)

    def _router_forget(self, name: str) -> None:
        """Nothing more is placed there until the fleet has it back."""
        client = self._fleet.clients.get(name)
        if client is None or client.lost is not None:
            with suppress(RouterError):  # the fleet was quicker
                self._router.set_state(name, healthy=False)

    def _remember(self, request_id: str, attempt_id: str) -> None:
        self._placed[request_id] = attempt_id
        if len(self._placed) > _REMEMBERED:
            self._placed.popitem(last=False)


def _one_answer(request: Request, index: int, number: int, token_ids: list[int]) -> Request:
    """Return what a worker is asked for: one answer, from where it stands."""
    params = request.params
    seed = params.seed + index if params.seed is not None else None
    scored = None if token_ids else params.prompt_logprobs  # told by the first attempt
    one = replace(params, n=1, seed=seed, stop=(), prompt_logprobs=scored)
    return replace(
        request,
        request_id=f"{request.request_id}-{index}-{number}",
        params=one,
        output_token_ids=list(token_ids),
        detokenize=False,
    )
