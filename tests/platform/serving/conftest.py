"""A fleet of real workers in processes of their own, and a dispatcher in this one."""

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from stafette.kvtransfer.event_stream.subscriber import EventSubscriber
from stafette.platform.frontend.generator import Hints
from stafette.platform.serving.dispatcher import DispatchConfig, Dispatcher
from stafette.platform.serving.fleet import FleetConfig, WorkerFleet
from stafette.router.hashing import Hashers, PromptHasher
from stafette.router.router import KvRouter, RouterConfig
from stafette.workers import SamplingParams
from stafette.workers.request import Request
from stafette.workers.service.config import ServiceConfig
from stafette.workers.weights.opening import open_tokenizer

PROCESS = Path(__file__).with_name("worker_process.py")
TOKEN = "the cluster's token"
KEY = "the cluster's key"
PATIENCE_S = 60.0
MODEL = "smollm2"


class WorkerProcess:
    def __init__(self, name: str, process, address: str) -> None:
        self.name = name
        self.process = process
        self.address = address

    def kill(self) -> None:
        self.process.kill()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


class Rig:
    """Starts workers; `dispatcher` serves from those that `connect` was told of."""

    def __init__(self) -> None:
        self.workers: dict[str, WorkerProcess] = {}
        self.tokenizer = open_tokenizer(MODEL, None)
        hashers = Hashers(KEY, 16)
        self.router = KvRouter(hashers, RouterConfig())
        self.events = EventSubscriber(self.router.index)
        service = ServiceConfig(token=TOKEN.encode(), beat_s=0.2, silence_s=3.0)
        self.fleet = WorkerFleet("test", FleetConfig(service=service), self.router, self.events)
        self.dispatcher = Dispatcher(
            DispatchConfig(model=MODEL), self.fleet, self.tokenizer, PromptHasher(hashers)
        )

    async def start(self, *names: str, **options) -> None:
        """Start workers whose names begin with their role, and wait until they are connected."""
        await asyncio.gather(*(self._start(name, options) for name in names))
        self.fleet.follow({name: worker.address for name, worker in self.workers.items()})
        await self.await_that(lambda: set(self.workers) == set(self.fleet.clients))

    def keep_apart(self, prefill: str, decode: str) -> None:
        """Compute every prompt on the one worker and its answer on the other, whatever it costs."""
        place = self.router.place
        self.router.place = lambda asked: place(asked)._replace(prefill=prefill, decode=decode)

    async def await_that(self, condition) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.01)

    async def ask(self, name: str, operation: str, payload=None):
        return await self.fleet.clients[name].ask(operation, payload, 10.0)

    def request(self, name: str, prompt: str | list[int], **params) -> Request:
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        wanted = SamplingParams(**({"temperature": 0.0, "max_tokens": 24} | params))
        return Request(request_id=name, prompt_token_ids=tokens, params=wanted)

    async def answer(self, request: Request, on_tokens=lambda count: None):
        """Return the text and the end of each of a request's answers."""
        texts, ends, count = {}, {}, 0
        async for deltas in self.dispatcher.stream(request, Hints()):
            for delta in deltas:
                texts[delta.index] = texts.get(delta.index, "") + delta.text
                if delta.finish_reason is not None:
                    ends[delta.index] = delta.finish_reason
                count += len(delta.token_ids)
                on_tokens(count)
        return [texts[i] for i in sorted(texts)], [ends[i] for i in sorted(ends)]

    async def close(self) -> None:
        await self.fleet.close()
        self.events.close()
        for worker in self.workers.values():
            if worker.process.returncode is None:
                worker.go_on()
                worker.kill()
            await worker.process.wait()

    async def _start(self, name: str, options: dict) -> None:
        role = {"p": "prefill", "d": "decode", "b": "both"}[name[0]]
        told = {"name": name, "role": role, "token": TOKEN, "transports": ["shm", "tcp"]}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            str(PROCESS),
            json.dumps(told | options),
            stdout=asyncio.subprocess.PIPE,
        )
        line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
        self.workers[name] = WorkerProcess(name, process, line.decode().strip())


@pytest.fixture
async def rig():
    rig = Rig()
    yield rig
    await rig.close()


@pytest.fixture(scope="session")
def expected():
    """What one engine alone answers."""
    from stafette.workers import LLM

    llm = LLM(model=MODEL, max_model_len=1024, num_kv_blocks=512, num_threads=2)

    def answer(prompt, **params):
        wanted = SamplingParams(**({"temperature": 0.0, "max_tokens": 24} | params))
        (output,) = llm.generate(prompt, wanted, use_tqdm=False)
        return [each.text for each in output.outputs], [
            each.finish_reason for each in output.outputs
        ]

    yield answer
    llm.close()
