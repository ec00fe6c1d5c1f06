"""Where a frontend tells the planner of its requests: it listens as a worker does, with proofs."""

import time
from collections.abc import AsyncGenerator, Callable, Mapping

from stafette.kvtransfer.errors import MalformedMessage
from stafette.platform.serving.dispatcher import Dispatcher
from stafette.workers.errors import RequestError
from stafette.workers.request import OutputDelta
from stafette.workers.service.frames import Order
from stafette.workers.service.serving import Operation, Served

_REMEDY = "is for workers: this is a frontend"


class Desk(Served):
    def __init__(self, name: str, dispatcher: Dispatcher) -> None:
        self.on_change: Callable[[], None] = lambda: None  # the server's
        self._name = name
        self._epoch = time.time_ns()
        self._began = time.monotonic()
        self._dispatcher = dispatcher
        self._pins: tuple[float, object] | None = None  # the planner's, kept for its next life
        dispatcher.placer.on_waiting = lambda: self.on_change()

    @property
    def name(self) -> str:
        return self._name

    @property
    def epoch(self) -> int:
        return self._epoch

    def describe(self) -> Mapping[str, object]:
        return {"age_s": time.monotonic() - self._began}

    def load(self) -> Mapping[str, object]:
        return {"waiting": self._dispatcher.placer.num_waiting}

    def generate(self, order: Order) -> AsyncGenerator[OutputDelta, None]:
        raise RequestError("generate", order.request.request_id, _REMEDY)

    async def prefill(self, order: Order) -> Mapping[str, object]:
        raise RequestError("prefill", order.request.request_id, _REMEDY)

    def operations(self) -> Mapping[str, Operation]:
        return {"traffic": self._traffic, "keep_pins": self._keep_pins, "pins": self._tell_pins}

    async def _traffic(self, payload: object) -> object:
        """Return what came behind the reader's cursor, and how many wait for a worker now."""
        try:
            news = self._dispatcher.traffic.news(payload)
        except MalformedMessage as error:
            raise RequestError("cursor", payload, str(error)) from error
        return [*news, self._dispatcher.placer.num_waiting]

    async def _keep_pins(self, payload: object) -> object:
        self._pins = (time.monotonic(), payload)
        return None

    async def _tell_pins(self, payload: object) -> object:
        """Return what was to be kept, and how many seconds ago."""
        if self._pins is None:
            return None
        at, kept = self._pins
        return [time.monotonic() - at, kept]
