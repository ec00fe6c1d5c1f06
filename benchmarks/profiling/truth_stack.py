"""Real workers as an endpoint that `stafette profile` measures: their own processes, their own way.

An engine that is measured alone never rests, and nobody asks it through sockets; the workers that
are compared with the twin do rest, and are asked so. Prompts go to the prefill worker, streams to
the decode worker, and nothing is handed over.
"""

import asyncio
import queue
from collections.abc import Iterator
from typing import Any

from benchmarks.profiling.truth_calibration import Placing
from benchmarks.serving.front import MODEL, Front
from stafette.platform.frontend.generator import Hints
from stafette.workers import SamplingParams
from stafette.workers.request import Request

_TOKEN = {"choices": [{"text": ""}]}


class Stack:
    """Asked from other threads than the front's."""

    url = "the workers"

    def __init__(self, front: Front, place: Placing, loop: asyncio.AbstractEventLoop) -> None:
        self._front, self._place, self._loop = front, place, loop
        self._asked = 0

    def get(self, path: str) -> Any:
        return {"data": [{"id": MODEL}]}

    def events(self, path: str, body: Any) -> Iterator[Any]:
        """Yield as many as there are tokens, each when it has come."""
        come: queue.SimpleQueue[Any] = queue.SimpleQueue()
        asking = asyncio.run_coroutine_threadsafe(self._ask(body, come), self._loop)
        while (event := come.get()) is not None:
            yield event
        asking.result()

    async def _ask(self, body: Any, come: "queue.SimpleQueue[Any]") -> None:
        self._asked += 1
        params = SamplingParams(temperature=0.0, max_tokens=body["max_tokens"], ignore_eos=True)
        wanted = Request(
            request_id=f"profile{self._asked}", prompt_token_ids=body["prompt"], params=params
        )
        worker = "p0" if body["max_tokens"] == 1 else "d0"
        try:
            async for deltas in self._front.dispatcher.stream(
                self._place.on(worker, wanted), Hints()
            ):
                for _ in range(sum(len(delta.token_ids) for delta in deltas)):
                    come.put(_TOKEN)
        finally:
            come.put(None)
