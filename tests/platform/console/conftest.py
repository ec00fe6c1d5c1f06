"""A real Chromium for all tests, and a fleet of mock workers in processes behind a frontend."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
import pytest_asyncio
from tests.platform.console.chromium import PATIENCE_S, Browser, found
from tests.platform.console.fleets import served

from benchmarks.serving import disagg_mocks
from benchmarks.serving.front import Front


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    if found() is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell")
    async with Browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser):
    """Opens pages, which are closed when the test is over."""
    opened = []

    async def open_page(*arguments, **options):
        opened.append(await browser.open(*arguments, **options))
        return opened[-1]

    yield open_page
    for page in opened:
        await page.close()


class MockFleet:
    """Mock workers, some of them in each process; `addresses` has those that live."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        self._processes: dict[tuple[str, ...], asyncio.subprocess.Process] = {}

    async def start(self, *names: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", str(Path(disagg_mocks.__file__)), *names),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._processes[names] = process
        async with asyncio.timeout(PATIENCE_S):
            self.addresses |= json.loads(await process.stdout.readline())

    async def kill(self, *names: str) -> None:
        process = self._processes.pop(names)
        process.kill()
        await process.wait()

    async def close(self) -> None:
        for names in list(self._processes):
            await self.kill(*names)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mocks():
    """The frontend of two mock workers in a process, and of a third, to be killed, in another."""
    fleet, front = MockFleet(), Front("console")
    try:
        await asyncio.gather(fleet.start("p0", "d0"), fleet.start("d1"))
        await front.follow(fleet.addresses)
        async with served(front.dispatcher, tokenizer=front.tokenizer) as (frontend, url):
            fleet.frontend, fleet.url, fleet.front = frontend, url, front
            yield fleet
    finally:
        await front.close()
        await fleet.close()
