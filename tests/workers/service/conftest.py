"""A worker without a model behind a real listener, and clients of it."""

import asyncio
import sys
from pathlib import Path

import pytest

from stafette.workers.errors import EngineDead, RequestError
from stafette.workers.request import OutputDelta, Request
from stafette.workers.sampling.params import SamplingParams
from stafette.workers.service.client import WorkerClient
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.frames import Order
from stafette.workers.service.server import WorkerServer

TOKEN = b"the cluster's token"
WORKER = Path(__file__).with_name("worker_process.py")


class Counting:
    """Answers with numbers that go on from the prompt's last one, a token a step."""

    name, epoch = "w", 7

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.left_early: list[str] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.dead = False
        self.times = 1  # that each number is said

    def describe(self):
        return {"role": "both", "blocks": 12}

    def load(self):
        return {"running": len(self.orders)}

    async def generate(self, order: Order):
        request = order.request
        self.orders.append(order)
        if request.prompt_token_ids[0] == 0:
            raise RequestError("prompt", request.prompt_token_ids, "must not begin with 0")
        if self.dead:
            raise EngineDead("engine", "for this test", "restart it")
        done = False
        try:
            first = request.token_ids[-1] + 1
            for token in range(first, first + request.params.max_tokens):
                await self.may_go_on.wait()
                await asyncio.sleep(0)
                last = token == first + request.params.max_tokens - 1
                reason = "length" if last else None
                said = [token] * self.times
                yield OutputDelta(request.request_id, 0, said, "", finish_reason=reason)
            done = True
        finally:
            if not done:
                self.left_early.append(request.request_id)

    async def prefill(self, order: Order):
        await self.may_go_on.wait()
        return {"tokens": len(order.request.prompt_token_ids), "to": order.kv_params["to"]}

    def operations(self):
        async def double(payload):
            return payload * 2

        async def wait(payload):
            await asyncio.sleep(60)

        return {"double": double, "wait": wait}


def order(name: str, *prompt: int, max_tokens: int = 5, kv=None, **fields) -> Order:
    params = SamplingParams(max_tokens=max_tokens)
    request = Request(
        request_id=name, prompt_token_ids=list(prompt), params=params, detokenize=False, **fields
    )
    return Order(request, kv or {})


async def collect(client: WorkerClient, wanted: Order) -> list[int]:
    return [token async for delta in client.generate(wanted) for token in delta.token_ids]


@pytest.fixture
def served() -> Counting:
    return Counting()


@pytest.fixture(params=["grpc", "tcp"])
def stream(request) -> str:
    return request.param


@pytest.fixture
def configured(stream):
    def make(**fields) -> ServiceConfig:
        usual = {"token": TOKEN, "handshake_timeout_s": 2.0, "stream": stream}
        return ServiceConfig(**(usual | fields))

    return make


@pytest.fixture
async def server(served, configured):
    server = await WorkerServer.start(served, configured())
    yield server
    await server.stop()


@pytest.fixture
async def connect(server, configured):
    clients: list[WorkerClient] = []

    async def make(name="w", address="", on_lost=lambda client, error: None, **config):
        where, chosen = address or server.address, configured(**config)
        clients.append(await WorkerClient.connect(name, where, "frontend", chosen, on_lost))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
async def start_worker(stream):
    """Start a worker in a process of its own; return (process, address)."""
    started = []

    async def start(step_s: float = 0.001):
        command = [sys.executable, "-P", str(WORKER), str(step_s), stream]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        started.append(process)
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        return process, line.decode().strip()

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture(scope="session")
def make_order():
    return order


@pytest.fixture(scope="session")
def collected():
    return collect
