"""Mock workers in processes of their own behind the real dispatcher, which cannot tell."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.event_stream.subscriber import EventSubscriber
from stafette.platform.frontend.generator import Hints
from stafette.platform.serving.dispatcher import DispatchConfig, Dispatcher
from stafette.platform.serving.fleet import FleetConfig, WorkerFleet
from stafette.router.hashing import Hashers, PromptHasher
from stafette.router.router import KvRouter, RouterConfig
from stafette.workers import SamplingParams
from stafette.workers.config import EngineConfig
from stafette.workers.errors import RequestError
from stafette.workers.request import Request
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.engine_worker import EngineWorker, WorkerConfig
from stafette.workers.weights.opening import open_tokenizer

PROCESS = Path(__file__).with_name("worker_process.py")
TOKEN = "the cluster's token"
KEY = "the cluster's key"
PATIENCE_S = 30.0
MODEL = "smollm2"
ROLES = {"p": "prefill", "d": "decode", "b": "both"}
PROMPT = list(range(100, 420))
SLOW = {"step_ms": 20.0}


class Rig:
    """Starts processes; `dispatcher` serves from all of their workers."""

    def __init__(self) -> None:
        self.addresses = {}
        self.processes = {}  # by worker
        self.torch = set()  # of each process, whether it has torch
        hashers = Hashers(KEY, 16)
        self.router = KvRouter(hashers, RouterConfig())
        self.events = EventSubscriber(self.router.index)
        service = ServiceConfig(token=TOKEN.encode(), beat_s=0.2, silence_s=3.0)
        self.fleet = WorkerFleet("test", FleetConfig(service=service), self.router, self.events)
        self.dispatcher = Dispatcher(
            DispatchConfig(model=MODEL),
            self.fleet,
            open_tokenizer(MODEL, None),
            PromptHasher(hashers),
        )

    async def start(self, *names, profile=None) -> None:
        """Start one process with these workers, whose names begin with their role."""
        workers = [
            {"name": name, "role": ROLES[name[0]], "profile": profile or SLOW} for name in names
        ]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            str(PROCESS),
            json.dumps({"token": TOKEN, "workers": workers}),
            stdout=asyncio.subprocess.PIPE,
        )
        self.processes |= dict.fromkeys(names, process)
        line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
        told = json.loads(line)
        self.torch.add(told["torch"])
        self.addresses |= told["addresses"]
        self.fleet.follow(self.addresses)
        await self.await_that(lambda: set(self.addresses) == set(self.fleet.clients))

    def keep_apart(self, prefill, decode) -> None:
        """Compute every prompt on the one worker and its answer on the other."""
        place = type(self.router).place
        self.router.place = lambda asked: place(self.router, asked)._replace(
            prefill=prefill, decode=decode
        )

    def place_freely(self) -> None:
        del self.router.place

    async def await_that(self, condition) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.01)

    async def stats(self, name):
        return await self.fleet.clients[name].ask("stats", None, 10.0)

    async def answer(self, name, prompt=PROMPT, on_tokens=lambda count: None, **params):
        """Return an answer's tokens."""
        wanted = SamplingParams(**({"max_tokens": 40} | params))
        request = Request(request_id=name, prompt_token_ids=prompt, params=wanted)
        tokens = []
        async for deltas in self.dispatcher.stream(request, Hints()):
            tokens += [token for delta in deltas for token in delta.token_ids]
            on_tokens(len(tokens))
        return tokens

    async def idle(self, *names) -> None:
        """Wait until nothing is held by anybody."""
        async with asyncio.timeout(PATIENCE_S):
            for name in names:
                while (found := await self.stats(name))["used_blocks"] or found["pinned_blocks"]:
                    await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self.fleet.close()
        self.events.close()
        for process in set(self.processes.values()):
            if process.returncode is None:
                process.kill()
            await process.wait()


async def refused(question) -> str:
    """Return which field of a question was wrong; empty: none."""
    try:
        await question
    except RequestError as error:
        return error.field
    return ""


@pytest.fixture
async def rig():
    rig = Rig()
    yield rig
    await rig.close()


@pytest.mark.parametrize("processes", [[("p0", "d0")], [("p0",), ("d0",)]])
async def test_a_prompt_is_handed_over_in_one_process_and_between_two(rig, processes):
    for names in processes:
        await rig.start(*names)
    rig.keep_apart("p0", "d0")

    first = await rig.answer("first")
    again = await rig.answer("again")

    assert first == again
    assert len(first) == 40
    assert rig.dispatcher.counters.handed_over == 2
    assert rig.dispatcher.counters.handover_failures == 0
    found = await rig.stats("d0")
    assert found["pulled_tokens"] == 19 * 16  # once: then they are cached there
    assert found["moved_bytes"] == {"mock": 19 * 16 * 131_072}
    await rig.idle("p0", "d0")
    assert rig.torch == {False}


async def test_the_router_learns_what_is_cached_and_goes_there(rig):
    await rig.start("b0", "b1", "b2")
    prompts = [[number + 3] * 320 for number in range(6)]
    for number, prompt in enumerate(prompts):
        await rig.answer(f"first {number}", prompt, max_tokens=1)
    await rig.await_that(lambda: rig.router.index.counters.batches >= 6)

    for number, prompt in enumerate(prompts):
        await rig.answer(f"again {number}", prompt, max_tokens=1)

    hits = [(await rig.stats(name))["prefix_hits"] for name in ("b0", "b1", "b2")]
    assert sum(hits) == 6 * 19 * 16


async def test_a_stream_goes_on_with_the_same_tokens_when_its_process_is_killed(rig):
    await rig.start("b0")
    whole = await rig.answer("whole")
    await rig.start("b1")
    killed = []

    def kill_at(count) -> None:
        if count >= 10 and not killed:
            killed.append(rig.dispatcher.placement("again")["chosen"]["decode"])
            rig.processes[killed[0]].kill()

    assert await rig.answer("again", on_tokens=kill_at) == whole
    assert killed
    assert rig.dispatcher.counters.moved == 1

    rig.addresses.pop(killed[0])
    await rig.start(killed[0])
    assert await rig.answer("third") == whole


async def test_a_prompt_is_computed_elsewhere_when_its_prefill_process_is_killed(rig):
    await rig.start("p0", profile={"step_ms": 300.0})
    await rig.start("d0")
    rig.keep_apart("p0", "d0")
    answer = asyncio.create_task(rig.answer("r"))
    await rig.await_that(lambda: rig.fleet.clients["p0"].num_requests > 0)

    rig.place_freely()
    rig.processes["p0"].kill()

    assert len(await answer) == 40
    counters = rig.dispatcher.counters  # it may be lost before the hand-over has begun
    assert counters.handover_failures + counters.moved == 1
    await rig.idle("d0")


async def test_leaving_a_stream_early_frees_the_blocks_of_both_workers(rig):
    await rig.start("p0", "d0")
    rig.keep_apart("p0", "d0")
    request = Request(
        request_id="r", prompt_token_ids=PROMPT, params=SamplingParams(max_tokens=400)
    )
    stream = rig.dispatcher.stream(request, Hints())
    async for _ in stream:
        break

    await stream.aclose()

    await rig.idle("p0", "d0")
    assert (await rig.stats("d0"))["running"] == 0


async def test_a_worker_that_drains_takes_nothing_and_its_role_changes(rig):
    await rig.start("b0", "b1")
    ask = rig.fleet.clients["b0"].ask

    assert await ask("set_role", "decode", 5.0) == "both"
    assert await ask("drain", None, 5.0) == 0
    await rig.await_that(lambda: rig.fleet.clients["b0"].load.get("draining"))

    await rig.answer("r")
    assert (await rig.stats("b0"))["steps"] == 0
    await rig.await_that(lambda: rig.router.fleet["b0"].spec.role == "decode")


async def test_it_says_of_itself_what_a_real_worker_says(rig):
    await rig.start("b0")
    client = rig.fleet.clients["b0"]
    config = WorkerConfig(
        name="real",
        engine=EngineConfig(max_model_len=64, num_kv_blocks=8, num_threads=1),
        agent=AgentConfig(name="real", token=TOKEN.encode()),
    )
    real = await EngineWorker.start(config)
    try:
        assert client.description.keys() == real.describe().keys()
        assert client.load.keys() == real.load().keys()
        assert (await rig.stats("b0")).keys() == (await real.operations()["stats"](None)).keys()
        for operation in real.operations():
            assert await refused(client.ask(operation, [], 5.0)) != "operation"
    finally:
        await real.close()


async def test_a_frontend_notes_each_answer_over_all_its_workers(rig):
    await rig.start("b0")
    await rig.start("b1")

    def kill_at(count):
        if 10 <= count < 20 and not rig.dispatcher.counters.moved:
            worker = rig.dispatcher.placement("first")["chosen"]["decode"]
            if rig.processes[worker].returncode is None:
                rig.processes[worker].kill()

    first = await rig.answer("first", max_tokens=20, on_tokens=kill_at)
    await rig.answer("second", max_tokens=1)

    assert rig.dispatcher.counters.moved == 1
    (arrivals, *counts), started, finished = rig.dispatcher.traffic.news([0, 0, 0])
    assert (arrivals, counts, len(first)) == (2, [2, 2], 20)
    assert [row[0] for row in started] == [len(PROMPT)] * 2
    (_, tokens, ttft_ms, itl_ms, wait_ms), (_, one, _, no_itl, _) = finished
    assert (tokens, one, no_itl) == (20, 1, None)
    assert ttft_ms >= wait_ms >= 0
    assert itl_ms > 0
