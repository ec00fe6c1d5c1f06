"""A fleet of real workers in processes of their own, and a dispatcher in this one."""

import asyncio

import pytest

from benchmarks.serving.nursery import (
    KEY,
    PATIENCE_S,
    TOKEN,
    Nursery,
    WorkerProcess,
    role_of,
)
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

MODEL = "smollm2"
SERVICE = ServiceConfig(token=TOKEN.encode(), beat_s=0.2, silence_s=3.0)


class Pool:
    """Workers of one nursery; those that a test has not harmed are used by the next."""

    def __init__(self) -> None:
        self.nursery = Nursery()
        self._idle: dict[tuple[str, str], WorkerProcess] = {}

    async def get(self, name: str, options: dict) -> WorkerProcess:
        idle = self._idle.pop((name, str(options)), None)
        return idle or await self.nursery.make(name, **options)

    def give_back(self, worker: WorkerProcess, options: dict) -> None:
        if worker.harmed:
            worker.kill()
        else:
            self._idle[worker.name, str(options)] = worker

    def close(self) -> None:
        self.nursery.close()


class Rig:
    """Starts workers; `dispatcher` serves from those that `start` was told of."""

    def __init__(self, pool: Pool, tokenizer, router=None, service=SERVICE, **dispatch) -> None:
        self.workers: dict[str, WorkerProcess] = {}
        self._options: dict[str, dict] = {}
        self.guest = False
        self._pool = pool
        self.tokenizer = tokenizer
        hashers = Hashers(KEY, 16)
        self.router = KvRouter(hashers, router or RouterConfig())
        self.events = EventSubscriber(self.router.index)
        self.fleet = WorkerFleet("test", FleetConfig(service=service), self.router, self.events)
        config = DispatchConfig(model=MODEL, **dispatch)
        self.dispatcher = Dispatcher(config, self.fleet, self.tokenizer, PromptHasher(hashers))
        self.mover = self.dispatcher.mover

    async def start(self, *names: str, step_s: float = 0.0, **options) -> None:
        """Start workers whose names begin with their role, and wait until they are connected."""
        await asyncio.gather(*(self._start(name, options) for name in names))
        self.follow()
        await self.await_that(lambda: self.fleet.clients.keys() >= set(names))
        for name in names:
            await self.ask(name, "reset_prefix_cache")
            await self.ask(name, "set_role", role_of(name))
            await self.ask(name, "set_step", step_s)

    async def launch(self, name: str) -> None:
        """Start a worker of which the fleet is not told."""
        await self._start(name, {})

    async def join(self, other: "Rig") -> None:
        """Be a second frontend of another one's workers."""
        self.guest = True
        self.workers = other.workers
        self.follow()
        await self.await_that(lambda: self.fleet.clients.keys() == self.workers.keys())

    def follow(self) -> None:
        self.fleet.follow({name: worker.address for name, worker in self.workers.items()})

    def keep_apart(self, prefill: str, decode: str) -> None:
        """Compute every prompt on the one worker and its answer on the other, whatever it costs."""
        place = self.router.place
        self.router.place = lambda asked: place(asked)._replace(
            prefill=prefill, decode=decode, source=None
        )

    def keep_on(self, name: str) -> None:
        """Place everything on one worker."""
        place = self.router.place
        self.router.place = lambda asked: place(asked)._replace(
            prefill=None, decode=name, source=None
        )

    def place_freely(self) -> None:
        self.router.place = type(self.router).place.__get__(self.router)

    async def await_that(self, condition) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.01)

    async def await_stats(self, name: str, condition) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition(await self.ask(name, "stats")):
                await asyncio.sleep(0.02)

    async def make_frontend(self, worker: str, count: int) -> WorkerProcess:
        """Start another frontend in a process of its own, with long answers on a worker."""
        nursery = self._pool.nursery
        return await nursery.make_frontend("frontend", self.workers[worker], count)

    async def stats(self, name: str) -> dict:
        return await self.ask(name, "stats")

    async def ask(self, name: str, operation: str, payload=None):
        return await self.fleet.clients[name].ask(operation, payload, PATIENCE_S)

    def request(
        self, name: str, prompt: str | list[int], lora: str | None = None, **params
    ) -> Request:
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        wanted = SamplingParams(**({"temperature": 0.0, "max_tokens": 24} | params))
        return Request(request_id=name, prompt_token_ids=tokens, params=wanted, lora=lora)

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

    async def begin(self, request: Request, count: int = 3) -> asyncio.Task:
        """Return what `answer` will return, when so many tokens are there."""
        begun = asyncio.Event()
        answer = asyncio.create_task(
            self.answer(request, lambda there: begun.set() if there >= count else None)
        )
        async with asyncio.timeout(PATIENCE_S):
            await begun.wait()
        return answer

    def chosen(self, name: str = "r") -> str:
        """Return who answers a request."""
        return self.dispatcher.placement(name)["chosen"]["decode"]

    async def close(self) -> None:
        """Nothing may be left on a worker that was not harmed."""
        for name, worker in self.workers.items():
            if not worker.harmed and name in self.fleet.clients:
                await self.await_stats(name, lambda s: not s["used_blocks"] and not s["leases"])
        assert not self.router.sharing.own
        await self.fleet.close()
        self.events.close()
        for name, worker in self.workers.items() if not self.guest else ():
            worker.go_on() if worker.harmed else None
            self._pool.give_back(worker, self._options[name])

    async def _start(self, name: str, options: dict) -> None:
        self._options[name] = options
        self.workers[name] = await self._pool.get(name, options)


@pytest.fixture(scope="session")
def pool():
    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def tokenizer():
    return open_tokenizer(MODEL, None)


@pytest.fixture
async def make_rig(pool, tokenizer):
    """Make a rig; it may have settings of its own for router, service and dispatcher."""
    made: list[Rig] = []

    def make(**settings) -> Rig:
        made.append(Rig(pool, tokenizer, **settings))
        return made[-1]

    yield make
    for rig in reversed(made):
        await rig.close()


@pytest.fixture
def rig(make_rig):
    return make_rig()


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
