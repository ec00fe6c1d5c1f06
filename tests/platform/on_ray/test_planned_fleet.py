"""A fleet on Ray Serve that its planner sizes: real processes, mock workers, real clients."""

import asyncio
import json
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

TOKENS = 20
SLEEPY = ("planner.idle_s=2", "planner.promise_window_s=4")  # who is silent for so long may sleep


class Load:
    """Sends requests at a rate; each must be answered to its last token."""

    def __init__(self, client) -> None:
        self.rate = 0.0
        self.answered = 0
        self._client = client
        self._asked: set[asyncio.Task] = set()
        self._sent = 0

    async def run(self) -> None:
        while True:
            if not self.rate:
                await asyncio.sleep(0.05)
                continue
            self._asked.add(asyncio.create_task(self._ask(self._sent)))
            self._sent += 1
            await asyncio.sleep(1 / self.rate)

    async def all_answered(self) -> None:
        self.rate = 0.0
        await asyncio.gather(*self._asked)
        assert self.answered == self._sent > 0

    async def _ask(self, number: int) -> None:
        got = await self._client.completions.create(
            model="smollm2",
            prompt=f"{number}: " + "again " * 290,
            max_tokens=TOKENS,
            extra_body={"ignore_eos": True},
        )
        assert got.usage.completion_tokens == TOKENS
        self.answered += 1


@asynccontextmanager
async def load_on(fleet):
    async with fleet.client() as client:
        load = Load(client)
        sending = asyncio.create_task(load.run())
        try:
            yield load
            await load.all_answered()
        finally:
            sending.cancel()


def ready(fleet) -> int:
    return sum(not worker.get("draining") for worker in fleet.workers())


def planner_of(fleet) -> dict:
    """Return what the planner tells; one that is being started, or too busy, is asked again."""
    until = time.monotonic() + 60
    while True:
        try:
            return fleet.ask("/v1/planner")
        except HTTPError as error:
            if error.code != 503 or time.monotonic() > until:
                raise
        time.sleep(0.1)


def total(fleet, what: str) -> int:
    """Return how many workers there are, or are to be."""
    return sum(pool[what] or 0 for pool in planner_of(fleet)["pools"].values())


def effects(fleet, wish: str) -> list[str]:
    """Return what became of wishes that begin so."""
    told = planner_of(fleet)["effects"]
    return [effect["state"] for effect in told if effect["wish"].startswith(wish)]


def pin(fleet, pool: str, replicas: int) -> None:
    body = json.dumps({"pool": pool, "replicas": replicas, "for_s": 3_600}).encode()
    with urlopen(f"{fleet.url}/v1/planner/pins", body, timeout=10) as answer:
        assert answer.status == 200


def run(fleet, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-P", "-m", "stafette", *arguments, "--url", fleet.url]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


async def until(await_that, condition) -> None:
    await asyncio.to_thread(await_that, condition)


async def test_a_fleet_without_a_worker_is_woken_by_a_request(planned, await_that):
    assert planned.workers() == []
    assert planned.ask("/ready") == {"status": "ok"}

    async with load_on(planned) as load:
        load.rate = 1
        await until(await_that, lambda: load.answered)

    assert ready(planned)


async def test_replicas_and_roles_follow_the_load(planned, await_that):
    async with load_on(planned) as load:
        load.rate = 0.4
        await until(await_that, lambda: 0 < total(planned, "planned") == ready(planned) < 3)
        load.rate = 6
        await until(await_that, lambda: ready(planned) > 2)
        most = ready(planned)
        load.rate = 0.4
        await until(await_that, lambda: ready(planned) < most)

    assert "done" in effects(planned, "role ")
    assert "failed" not in effects(planned, "")
    explained = run(planned, "planner", "explain").stdout
    assert "observed: rate" in explained


async def test_without_its_planner_a_fleet_serves_on_in_its_size(planned, await_that):
    pin(planned, "decode", 2)
    async with load_on(planned) as load:
        load.rate = 1
        await until(await_that, lambda: len(planned.processes("DecodeWorker")) == 2)
        before = {p.pid for p in planned.processes("DecodeWorker")}
        (planner,) = planned.processes("stafette:Planner")

        planner.kill()
        answered = load.answered
        await until(await_that, lambda: load.answered > answered)
        await until(await_that, lambda: planner_of(planned)["plans"])

    decode = planner_of(planned)["pools"]["decode"]
    assert decode["pin"]["replicas"] == decode["planned"] == 2
    assert {p.pid for p in planned.processes("DecodeWorker")} == before


async def test_who_leaves_is_emptied_first(planned, await_that):
    async with load_on(planned) as load:
        load.rate = 1
        pin(planned, "decode", 1)
        await until(await_that, lambda: len(planned.processes("DecodeWorker")) == 1)

    assert "done" in effects(planned, "drain")


async def test_a_deployment_keeps_what_is_planned(planned, await_that):
    said = await asyncio.to_thread(planned.update, "dispatch.wait_s=31")

    assert "decode stays at 1" in said
    released = run(planned, "planner", "unpin", "decode")
    assert released.returncode == 0, released.stderr
    again = run(planned, "planner", "unpin", "decode")
    assert (again.returncode, "is not pinned" in again.stderr) == (1, True)


async def lets_go_and_comes_back(fleet, await_that) -> None:
    """Ask for something, then nothing until nobody is there, then again."""
    async with load_on(fleet) as load:
        load.rate = 1
        await until(await_that, lambda: load.answered)
        load.rate = 0
        await until(await_that, lambda: not total(fleet, "target") and not fleet.workers())
        answered = load.answered
        load.rate = 1
        await until(await_that, lambda: load.answered > answered)


async def test_a_fleet_falls_asleep_and_wakes_and_loses_nobody(planned, await_that):
    await asyncio.to_thread(planned.update, *SLEEPY)

    await lets_go_and_comes_back(planned, await_that)


async def test_the_same_by_a_policy_of_serves_autoscaler(planned, await_that):
    await asyncio.to_thread(planned.update, *SLEEPY, "planner.scaler=policy")

    await lets_go_and_comes_back(planned, await_that)

    pin(planned, "decode", 3)  # over max_replicas
    await until(await_that, lambda: len(planned.processes("DecodeWorker")) == 3)


async def test_a_deployment_keeps_what_is_planned_where_a_policy_carries_it_out(
    planned, await_that
):
    settings = (*SLEEPY, "planner.scaler=policy")
    await asyncio.to_thread(planned.update, *settings)
    pin(planned, "decode", 2)
    await until(await_that, lambda: len(planned.processes("DecodeWorker")) == 2)
    before = {p.pid for p in planned.processes("DecodeWorker")}

    said = await asyncio.to_thread(planned.update, *settings, "dispatch.wait_s=32")

    assert "decode stays at 2" in said
    async with load_on(planned) as load:
        load.rate = 1
        await until(await_that, lambda: load.answered > 2)
    assert {p.pid for p in planned.processes("DecodeWorker")} == before
    pin(planned, "decode", 1)  # and plans are carried out as before
    await until(await_that, lambda: len(planned.processes("DecodeWorker")) == 1)
