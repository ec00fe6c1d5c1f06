"""Finds workers for answers: asks the router, and waits where it knows none."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from stafette.kvtransfer.blocks import Extras
from stafette.platform.frontend.errors import TooMany, Unavailable
from stafette.platform.serving.config import DispatchConfig
from stafette.platform.serving.course import Course
from stafette.platform.serving.fleet import WorkerFleet
from stafette.router import request as placing
from stafette.router.errors import NoCandidate, Rejected, RouterError, UnknownReservation
from stafette.router.filters import Busy
from stafette.router.hashing import PromptHasher
from stafette.router.router import Placement

_LOOK_AGAIN_S = 0.1


class Placer:
    """What it returns is booked until `free`."""

    def __init__(self, config: DispatchConfig, fleet: WorkerFleet, hasher: PromptHasher) -> None:
        self._config = config
        self._fleet = fleet
        self._router = fleet.router
        self._hasher = hasher
        self.num_waiting = 0  # answers that no worker has yet
        self.on_waiting: Callable[[], None] = lambda: None  # one more of them

    async def place(self, course: Course, name: str) -> Placement:
        """Return where an answer goes from here; wait a while for a worker when there is none.

        One that has begun goes to a worker that drains rather than nowhere.
        """
        asked = self._asked(course, name)
        self._fleet.changed.clear()
        found = self._look(course, asked)
        if isinstance(found, Placement):
            return found
        self.num_waiting += 1
        self.on_waiting()
        try:
            return await self._await_place(course, asked)
        finally:
            self.num_waiting -= 1

    def try_place(self, course: Course, name: str) -> Placement | None:
        """Return where an answer could go now."""
        try:
            return self._place(course, self._asked(course, name))
        except (NoCandidate, Rejected):
            return None

    def free(self, name: str, num_tokens: int = 0) -> None:
        """A leg is over; nothing happens when its worker has taken its booking along."""
        with suppress(UnknownReservation):
            self._router.free(name, num_tokens)

    def forget(self, worker: str) -> None:
        """Place nothing on a lost worker until the fleet has it back."""
        client = self._fleet.clients.get(worker)
        if client is None or client.lost is not None:
            with suppress(RouterError):  # the fleet was quicker
                self._router.set_state(worker, healthy=False)

    def decision(self, name: str) -> Mapping[str, Any] | None:
        found = self._router.decisions.of(name)
        return None if found is None else found.to_dict()

    async def _await_place(self, course: Course, asked: placing.Request) -> Placement:
        began = awake = time.monotonic()
        while isinstance(found := self._look(course, asked), NoCandidate):
            now = time.monotonic()
            asleep = self._config.wakes and not self._fleet.clients
            awake = now if asleep else awake
            left_s = self._config.wait_s - (now - awake)
            if asleep:  # a start takes longer than a place among others
                left_s = self._config.wake_wait_s - (now - began)
            if left_s <= 0:
                raise self._none(found) from found
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _LOOK_AGAIN_S)):
                    await self._fleet.changed.wait()
            self._fleet.changed.clear()
        return found

    def _look(self, course: Course, asked: placing.Request) -> Placement | NoCandidate:
        try:
            return self._place(course, asked)
        except Rejected as error:
            raise TooMany(str(error), retry_after_s=error.retry_after_s) from error
        except NoCandidate as error:
            draining = self._fleet.draining
            if draining and course.begun:
                return Placement(asked.request_id, min(draining), None, None, 0, 0.0)
            return error

    def _place(self, course: Course, asked: placing.Request) -> Placement:
        placement = self._router.place(asked)
        if course.request.params.scores_prompt and not course.begun:
            return placement._replace(prefill=None, source=None)  # KV would be of no use to it
        return placement

    def _asked(self, course: Course, name: str) -> placing.Request:
        request, hints, model = course.request, course.hints, self._config.model
        tokens = [*request.prompt_token_ids, *course.text.token_ids]
        lora = request.lora or ""
        extras = Extras(lora=lora, salt=request.cache_salt or "")
        session = (f"{hints.tenant}/{hints.session}",) if hints.session else ()
        return placing.Request(
            request_id=name,
            chain=self._hasher.chain(tokens, model, extras, *session),
            prompt_tokens=len(tokens),
            expected_output_tokens=self._expected_tokens(request.params.max_tokens),
            model=model,
            lora=lora,
            tenant=hints.tenant,
            session=hints.session,
            priority=-request.priority,  # here the lower is the sooner
        )

    def _expected_tokens(self, limit: int | None) -> int | None:
        """Clients ask for far more than they get: their limit tells only when it is small."""
        return limit if limit is not None and limit < self._router.expected_output_tokens else None

    def _none(self, error: NoCandidate) -> TooMany | Unavailable:
        if any(isinstance(reason, Busy) for reason in error.reasons.values()):
            return TooMany(str(error), retry_after_s=self._config.retry_after_s)
        return Unavailable(str(error))
