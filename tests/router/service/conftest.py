"""A service on a real socket in this process, and services in processes of their own."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import urlsplit

import pytest

from stafette.router.service.app import RouterApp
from stafette.router.service.client import RouterClient
from stafette.router.service.config import RouterServiceConfig, Secrets
from stafette.router.service.listening import open_listener, url_of
from stafette.router.service.reading import read_as
from stafette.router.service.server import Server
from stafette.router.service.service import RouterService

PATIENCE_S = 30.0
JSON = {"content-type": "application/json"}
KEY = "a secret of the whole cluster"
# `stafette router` without the other commands, whose imports take longer than all else here.
COMMAND = [
    sys.executable,
    "-P",
    "-c",
    """
import argparse, sys
from stafette.platform.commands import router
parser = argparse.ArgumentParser()
router.add_arguments(parser)
sys.exit(router.run(parser.parse_args()))
""",
]


class Time:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Served:
    service: RouterService
    server: Server
    url: str
    client: RouterClient
    token: str | None
    others: list[RouterClient] = field(default_factory=list)

    def another_client(self, token: str | None = None) -> RouterClient:
        self.others.append(RouterClient(self.url, token or self.token))
        return self.others[-1]

    async def ask(self, method, path, body=b"", headers=JSON):
        """Ask as any HTTP client does, without ours; return status, headers and body."""
        return await asyncio.to_thread(self._call, method, path, body, headers)

    async def error_of(self, name, **fields):
        """Return the status and the error of a request that is refused."""
        path = f"/v1/router/{name}"
        status, headers, body = await self.ask("POST", path, json.dumps(fields).encode())
        error = json.loads(body)["error"]
        assert headers["content-type"] == "application/json"
        assert {"code", "message", "field", "value", "remedy"} <= error.keys()
        return status, error

    def _call(self, method, path, body, headers):
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()


class RouterProcess:
    """`stafette router serve` in a process of its own."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"STAFETTE_ROUTER_KEY": KEY} | variables,
        )

    @cached_property
    def url(self) -> str:
        """Wait until it is ready."""
        found = re.search(r"ready at ([^\s,]+)", self._process.stdout.readline())
        assert found, self._process.stderr.read()
        return found[1]

    def stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def end(self) -> int:
        """Ask it to end; return its status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE_S)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()
        self._process.stderr.close()


@pytest.fixture
def clock() -> Time:
    return Time()


@contextlib.asynccontextmanager
async def serving(token=None, clock=time.monotonic, key=KEY, **options) -> AsyncIterator[Served]:
    """Serve a router here; the options are those of its file."""
    settings = {"service": {"port": 0} | options.pop("service", {}), **options}
    config = read_as(RouterServiceConfig, settings)
    service = RouterService(config, Secrets(key=key.encode(), token=token), clock)
    with open_listener(config.service.host, config.service.port) as listener:
        server = Server(RouterApp(service, token))
        ready = asyncio.Event()
        running = asyncio.create_task(server.run(listener, ready.set))
        await ready.wait()
        url = url_of(listener, config.service.tls_certfile is not None)
        served = Served(service, server, url, RouterClient(url, token), token)
        try:
            yield served
        finally:
            await _stop(server, running, served)


@pytest.fixture(scope="session")
def one_service():
    """For a module whose tests leave nothing behind: the context in which a service runs."""
    return serving


@pytest.fixture
async def serve():
    async with contextlib.AsyncExitStack() as stack:
        yield lambda **options: stack.enter_async_context(serving(**options))


async def _stop(server: Server, running: "asyncio.Task[None]", served: Served) -> None:
    for client in (served.client, *served.others):
        client.close()
    server.stop()
    await asyncio.wait_for(running, PATIENCE_S)


@pytest.fixture
def start_router():
    started = []

    def start(*arguments: str, **variables: str) -> RouterProcess:
        started.append(RouterProcess(*arguments, **variables))
        return started[-1]

    yield start
    for router in started:
        router.kill()


@pytest.fixture
def eventually():
    """Wait for what nothing announces."""

    async def wait(condition) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    return wait
