"""Requests that are held until a worker is free enough: `Admission`, with somebody who waits."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from stafette.router.admission import Admission, AdmissionConfig
from stafette.router.errors import InvalidValue, Rejected, UnknownReservation
from stafette.router.request import Request
from stafette.router.router import KvRouter, Placement
from stafette.router.service.errors import Stopping


class WaitingRoom:
    """Used by the event loop's thread alone; `poll` it when work ends, and now and then."""

    def __init__(
        self,
        router: KvRouter,
        config: AdmissionConfig,
        clock: Callable[[], float],
        max_wait_s: float,
    ) -> None:
        self.admission = Admission(router, config)
        self.rejected = 0
        self._router = router
        self._clock = clock
        self._max_wait_s = max_wait_s
        self._waiting: dict[str, asyncio.Future[Placement]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, request: Request) -> "Placement | asyncio.Future[Placement]":
        """Place it, or let it wait: then `wait` for it. Rejected says when to come again."""
        if self.admission.queue.config.max_target_queue_ms is None:
            return self._router.place(request)
        if request.request_id in self._waiting:
            raise InvalidValue("request_id", request.request_id, "waits already: let it")
        try:
            placement = self.admission.offer(request, self._clock())
        except Rejected:
            self.rejected += 1
            raise
        if placement is not None:
            return placement
        future = asyncio.get_running_loop().create_future()
        self._waiting[request.request_id] = future
        return future

    async def wait(self, request_id: str, future: "asyncio.Future[Placement]") -> Placement:
        try:
            async with asyncio.timeout(self._max_wait_s):
                return await future
        except TimeoutError:
            self._give_back(request_id, future)
            self.rejected += 1
            reason = f"it waited {self._max_wait_s:g} s for a free worker"
            raise Rejected(reason, self._max_wait_s) from None
        except asyncio.CancelledError:
            self._give_back(request_id, future)
            raise
        finally:
            if self._waiting.get(request_id) is future:
                del self._waiting[request_id]

    def poll(self) -> None:
        if not self._waiting and not len(self.admission.queue):
            return
        for request, settled in self.admission.poll(self._clock()):
            future = self._waiting.pop(request.request_id, None)
            if future is None or future.done():  # whoever waited has left
                if isinstance(settled, Placement):
                    with suppress(UnknownReservation):
                        self._router.free(request.request_id)
            elif isinstance(settled, Placement):
                future.set_result(settled)
            else:
                self.rejected += isinstance(settled, Rejected)
                future.set_exception(settled)

    def close(self) -> None:
        """Whoever waits is told to ask another router."""
        for request_id, future in self._waiting.items():
            if not future.done():
                remedy = "this router is about to end: ask another one"
                future.set_exception(Stopping("request_id", request_id, remedy))
        self._waiting.clear()

    def _give_back(self, request_id: str, future: "asyncio.Future[Placement]") -> None:
        """It may have been placed in the very moment in which nobody waited any more."""
        if future.done() and not future.cancelled() and future.exception() is None:
            with suppress(UnknownReservation):
                self._router.free(request_id)
