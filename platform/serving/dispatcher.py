"""Serves requests from a fleet: chooses workers, and goes on elsewhere when one dies or drains."""

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from stafette.platform.frontend.errors import TooMany, Unavailable
from stafette.platform.frontend.generator import Hints, Status
from stafette.platform.serving.answering import AnswerText
from stafette.platform.serving.attempt import Attempt, HandoverFailed
from stafette.platform.serving.config import DispatchConfig as DispatchConfig
from stafette.platform.serving.course import Course, Leg
from stafette.platform.serving.fleet import WorkerFleet
from stafette.platform.serving.leg_books import LegBooks
from stafette.platform.serving.merging import merge
from stafette.platform.serving.mover import Mover
from stafette.platform.serving.overview import overview
from stafette.platform.serving.placer import Placer
from stafette.platform.serving.totals import Totals
from stafette.platform.serving.traffic import TrafficBook
from stafette.router.hashing import PromptHasher
from stafette.router.router import KvRouter, Placement
from stafette.router.service.explaining import explain
from stafette.workers.errors import Declined, WorkerLost
from stafette.workers.logging_context import REQUEST
from stafette.workers.request import OutputDelta, Request
from stafette.workers.service.client import Cut
from stafette.workers.tracing import Attributes, happened, part
from stafette.workers.weights.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

_REMEMBERED = 1_000  # requests whose placement can be asked for


@dataclass(slots=True)
class DispatchCounters:
    requests: int = 0
    attempts: int = 0
    moved: int = 0  # answers that went on elsewhere after their worker was lost
    drained: int = 0  # and those that did because it was told to stop
    handed_over: int = 0  # prompts that another worker computed
    handover_failures: int = 0


class Dispatcher:
    """A `Generator` for the frontend; used by its event loop."""

    def __init__(
        self, config: DispatchConfig, fleet: WorkerFleet, tokenizer: Tokenizer, hasher: PromptHasher
    ) -> None:
        self.counters = DispatchCounters()
        self.config = config
        self._fleet = fleet
        self._router: KvRouter = fleet.router
        self._totals = Totals()
        self._tokenizer = tokenizer
        self.placer = Placer(config, fleet, hasher)
        self.mover = Mover(config, fleet, self.placer)
        self.traffic = TrafficBook()
        self._placed: OrderedDict[str, str] = OrderedDict()  # request -> its latest leg

    def stream(self, request: Request, hints: Hints) -> AsyncGenerator[list[OutputDelta], None]:
        """Return what comes of all answers; each goes its own way, and may be moved on its own."""
        self.counters.requests += 1
        answers = [self._answer(request, index, hints) for index in range(request.params.n)]
        return answers[0] if len(answers) == 1 else merge(answers)

    def placement(self, request_id: str) -> Mapping[str, Any] | None:
        return self.placer.decision(self._placed.get(request_id, ""))

    def workers(self) -> list[dict[str, Any]]:
        return overview(self._fleet)

    def decisions(self, query: str) -> Mapping[str, Any]:
        return explain(self._router, query, time.monotonic())

    def status(self) -> Status:
        loads = [client.load for client in self._fleet.clients.values()]

        def total(name: str) -> int:
            return sum(value for load in loads if isinstance(value := load.get(name), int))

        blocks = sum(
            blocks
            for client in self._fleet.clients.values()
            if isinstance(blocks := client.description.get("num_blocks"), int)
        )
        self._totals.look(self._fleet.clients.values())
        sums = self._totals.sums
        return Status(
            ready=any(self._fleet.clients) or self.config.wakes,
            num_running=total("running"),
            num_waiting=total("waiting"),
            kv_cache_usage=total("used_blocks") / blocks if blocks else 0.0,
            prefix_queries=sums["prefix_queries"],
            prefix_hits=sums["prefix_hits"],
            num_preemptions=sums["preemptions"],
            pulled_tokens=sums["pulled_tokens"],
            loras=self.config.loras,
        )

    async def _answer(
        self, request: Request, index: int, hints: Hints
    ) -> AsyncGenerator[list[OutputDelta], None]:
        """Yield one of a request's answers, from as many workers as it takes.

        Every token passes through here: no generator more than needed stands in its way.
        """
        REQUEST.set(request.request_id)
        text = AnswerText(self._tokenizer, request, index)
        course = Course(request, index, hints, text)
        notes = self.traffic.arrive(len(request.prompt_token_ids))
        before: Leg | None = None
        losses: list[Exception] = []
        while len(losses) < self.config.max_attempts:
            leg = await self._begin(course, before)
            notes.placed()
            before = None
            try:
                books = LegBooks(leg, self._router)
                async with aclosing(leg.attempt.run()) as deltas:
                    async for delta in deltas:
                        shown = books.read(delta)
                        notes.see(shown)
                        yield [shown]
                        if shown.finish_reason is not None:
                            break  # by a stop string, of which the worker knows nothing
                return
            except Cut:
                self.counters.drained += 1
                happened("moved off a worker that drains", {"stafette.worker": leg.decode})
                before = leg
            except (WorkerLost, Declined, HandoverFailed) as error:
                losses.append(error)
                self._note(error, leg)
            finally:
                self._end(leg, goes_on=before is leg)
        if all(isinstance(loss, Declined) for loss in losses):
            raise TooMany(str(losses[-1]), retry_after_s=self.config.retry_after_s)
        raise Unavailable(f"{len(losses)} workers were lost one after the other")

    async def _begin(self, course: Course, before: Leg | None) -> Leg:
        """Return the next leg: from where the one before was cut, or from a place of its own."""
        placement = None if before is None else before.onward
        if placement is None:
            with part("place") as span:
                placement = await self.placer.place(course, course.next_name())
                if span is not None:
                    span.note(_shown(placement))
        self._remember(course.request.request_id, placement.request_id)
        wanted = course.request_from_here(placement.request_id)
        attempt = Attempt(wanted, placement, self._fleet, self.config.prefill_timeout_s)
        leg = Leg(course, attempt, before)
        self.mover.enter(leg)
        self.counters.attempts += 1
        self.counters.handed_over += placement.prefill is not None
        return leg

    def _end(self, leg: Leg, goes_on: bool) -> None:
        self.mover.leave(leg)
        leg.arrived()
        self.placer.free(leg.name, len(leg.course.text.token_ids))
        if leg.onward is not None and not goes_on:  # it ended by itself while it was being moved
            self.placer.free(leg.onward.request_id)
            leg.onward_began.set()

    def _note(self, error: Exception, leg: Leg) -> None:
        """A leg came to nothing, or to a part: the next one goes on from there."""
        count = len(leg.course.text.token_ids)
        _log.warning("%s: going on elsewhere after %d tokens", error, count)
        lost = {"error.type": type(error).__name__, "stafette.told": str(error)}
        happened("going on elsewhere", {**lost, "stafette.tokens": count})
        if isinstance(error, HandoverFailed):
            self.counters.handover_failures += 1
        elif isinstance(error, WorkerLost):
            self.counters.moved += 1
            if error.value == leg.decode:
                self.placer.forget(leg.decode)

    def _remember(self, request_id: str, leg_name: str) -> None:
        self._placed[request_id] = leg_name
        if len(self._placed) > _REMEMBERED:
            self._placed.popitem(last=False)


def _shown(placement: Placement) -> Attributes:
    source = placement.source
    return {
        "stafette.decode": placement.decode,
        "stafette.prefill": placement.prefill or placement.decode,
        "stafette.source": source.target if source is not None else "",
        "stafette.cached_tokens": placement.cached_tokens,
        "stafette.predicted_ttft_ms": placement.ttft_ms,
    }
