"""A stack that is counted: mock workers in a process of their own behind a frontend with HTTP."""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import pytest
from tests.platform.observability.asking import post

from stafette.platform.config import load_mapping
from stafette.platform.frontend.app import Frontend
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.keys import ApiKey
from stafette.platform.frontend.served import Served
from stafette.platform.frontend.server import Server, address, listen
from stafette.platform.observability.tracing import open_tracing
from stafette.platform.serving.assembly import fleet_metrics, make_front, node_page

PROCESS = Path(__file__).with_name("mock_process.py")
PATIENCE_S = 30.0
PROMPT = list(range(100, 420))


class Stack:
    def __init__(self, port: int, **settings) -> None:
        self.port = port
        self.settings = {
            "cluster": {"token": "a token for the tests", "host": "127.0.0.1"},
            "service": {"beat_s": 0.2},
            "metrics": {"port": port},
            **settings,
        }
        self.config = load_mapping(self.settings, "test", {}).config
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(self, workers: dict[str, str], ttl_s: float = 30.0) -> None:
        self.front = make_front(self.config, "frontend-0", "127.0.0.1")
        self.addresses = await self.start_workers(workers, ttl_s)
        self.front.fleet.follow(self.addresses)
        async with asyncio.timeout(PATIENCE_S):
            while self.front.fleet.clients.keys() != workers.keys():
                await asyncio.sleep(0.01)
        settings = FrontendConfig(port=0)
        served = Served.of(settings, self.config.model, self.front.tokenizer, 1024)
        self.page = node_page(self.config, "frontend-0", "frontend")
        self.page.process.add(fleet_metrics(self.front).collect)
        keys = (ApiKey(name="alice", secret="secret"),)
        app = Frontend(served, self.front.dispatcher, settings, keys, self.page)
        self.tracing = open_tracing(self.config.tracing, "frontend-0", "frontend")
        if self.tracing is not None:
            app.trace(self.tracing)
        self.server, listener = Server(app), listen(settings)
        started = asyncio.Event()
        self._serving = asyncio.create_task(self.server.run(listener, started.set))
        await started.wait()
        await self.page.start()
        self.url = address(settings, listener)

    async def start_workers(self, workers: dict[str, str], ttl_s: float) -> dict[str, str]:
        told = {"config": self.settings, "workers": workers, "ttl_s": ttl_s}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", str(PROCESS), json.dumps(told), stdout=asyncio.subprocess.PIPE
        )
        self._processes.append(process)
        async with asyncio.timeout(PATIENCE_S):
            return json.loads(await process.stdout.readline())

    async def complete(self, prompt=PROMPT, max_tokens=8, **headers):
        """Return the answer to a prompt of tokens."""
        body = {"model": "smollm2", "prompt": prompt, "max_tokens": max_tokens, "stream": False}
        headers = {"authorization": "Bearer secret", **headers}
        return await asyncio.to_thread(post, f"{self.url}/v1/completions", body, headers)

    def keep_apart(self, prefill: str, decode: str) -> None:
        """Compute every prompt on the one worker and its answer on the other."""
        router = self.front.fleet.router
        place = type(router).place
        router.place = lambda asked: place(router, asked)._replace(
            prefill=prefill, decode=decode, source=None
        )

    def kill(self, number: int) -> None:
        """Kill one of the processes that were started, counted from 0."""
        self._processes[number].kill()

    async def kill_workers(self) -> None:
        for process in self._processes:
            process.kill()
            await process.wait()

    async def close(self) -> None:
        self.server.stop()
        await self._serving
        await self.page.close()
        await self.front.close()
        if self.tracing is not None:
            await self.tracing.close()
        for process in self._processes:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(PATIENCE_S):
                await process.wait()


@pytest.fixture
async def make_stack(free_port, monkeypatch):
    folder = tempfile.TemporaryDirectory()  # where a node's processes find each other
    monkeypatch.setenv("TMPDIR", folder.name)
    monkeypatch.setattr(tempfile, "tempdir", None)
    made = []

    async def make(workers=None, ttl_s=30.0, **settings) -> Stack:
        stack = Stack(free_port(), **settings)
        made.append(stack)
        await stack.start(workers or {"p0": "prefill", "d0": "decode"}, ttl_s)
        return stack

    yield make
    for stack in made:
        await stack.close()
    folder.cleanup()
