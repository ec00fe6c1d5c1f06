"""A worker without a model or a scheduler: what is left to measure is the way to its client.

    python step_worker.py STEP_S STREAM

It adds one token to every answer in each step, and says its address when it serves.
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import uvloop

from stafette.kvtransfer.blocks import BlockHasher
from stafette.kvtransfer.event_log import EventLog
from stafette.kvtransfer.event_stream.publisher import EventPublisher, PublisherConfig
from stafette.workers.garbage import settle
from stafette.workers.request import OutputDelta
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.deliveries import Deliveries
from stafette.workers.service.frames import Order
from stafette.workers.service.inbox import Inbox
from stafette.workers.service.load import load_of
from stafette.workers.service.server import WorkerServer
from stafette.workers.service.serving import Operation, Served
from stafette.workers.stats import SchedulerStats

MODEL = "smollm2"  # only its tokenizer is used, by the frontend
KEY = "the benchmark's key"
TOKEN = b"the benchmark's token"
BLOCK_SIZE = 16
MAX_MODEL_LEN = 8_192
WORD = 45_395  # " tok", of which every answer is made
_NUM_BLOCKS = 1 << 20


class StepWorker(Served):
    """Steps as an asyncio task, as long as somebody waits for tokens."""

    def __init__(
        self, name: str, step_s: float, key: str = KEY, events_key: bytes | None = None
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._name = name
        self._step_s = step_s
        self._key = key  # of the block hashes
        self._epoch = time.time_ns()
        self._events = EventPublisher(EventLog(name, self._epoch), PublisherConfig(key=events_key))
        self._deliveries = Deliveries()
        self._left: dict[Inbox, int] = {}
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    @property
    def name(self) -> str:
        return self._name

    @property
    def epoch(self) -> int:
        return self._epoch

    def describe(self) -> Mapping[str, object]:
        return {
            "role": "both",
            "class": "",
            "model": MODEL,
            "max_model_len": MAX_MODEL_LEN,
            "block_size": BLOCK_SIZE,
            "fingerprint": BlockHasher(self._key, BLOCK_SIZE, MODEL).fingerprint,
            "num_blocks": _NUM_BLOCKS,
            "block_bytes": 1,
            "host": "",
            "agent": b"none",
            "events": [self._events.address, self._events.replay_address],
        }

    def load(self) -> Mapping[str, object]:
        running = SchedulerStats(len(self._left), 0, 0, _NUM_BLOCKS, 0, 0, 0, 0, 0)
        return load_of(running, "both", False)

    async def generate(self, order: Order) -> AsyncGenerator[OutputDelta, None]:
        inbox, finished = Inbox(self._deliveries), False
        self._left[inbox] = order.request.params.max_tokens or 1
        self._news.set()
        try:
            while not finished:
                for delta in await inbox.next():
                    finished = delta.finish_reason is not None
                    yield delta
        finally:
            self._left.pop(inbox, None)

    async def prefill(self, order: Order) -> Mapping[str, object]:
        raise NotImplementedError

    def operations(self) -> Mapping[str, Operation]:
        return {}

    async def _run(self) -> None:
        while True:
            if not self._left:
                self._news.clear()
                await self._news.wait()
            due = time.perf_counter() + self._step_s
            self._step()
            await asyncio.sleep(max(0.0, due - time.perf_counter()))

    def _step(self) -> None:
        for inbox, left in list(self._left.items()):
            if left == 1:
                del self._left[inbox]
                inbox.put(OutputDelta("", 0, [WORD], "", finish_reason="length"))
            else:
                self._left[inbox] = left - 1
                inbox.put(OutputDelta("", 0, [WORD], ""))


async def main(step_s: float, stream: Any) -> None:
    worker = StepWorker("step", step_s)
    server = await WorkerServer.start(worker, ServiceConfig(token=TOKEN, stream=stream))
    settle()
    print(server.address, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1]), sys.argv[2]))
