"""A mock worker in this event loop: what its streams get, also when it ends or fails."""

import asyncio

import pytest

from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.connectors.p2p.messages import Give
from stafette.workers import SamplingParams
from stafette.workers.errors import Declined, EngineDead, RequestError
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.host import MockHost
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.mocker.worker import MockWorker
from stafette.workers.request import Request
from stafette.workers.service.frames import Order

FAST = Profile(step_ms=1.0)
SLOW = Profile(step_ms=60_000.0)
GIVE = Give("hand-off", ("reader",)).params()


@pytest.fixture
async def start():
    host = MockHost(AgentConfig(name="h", token=b"the cluster's token", transports=("tcp",)))
    workers = []

    def start(profile=FAST):
        workers.append(MockWorker(MockerConfig(name="w", profile=profile), host))
        return workers[-1]

    yield start
    for worker in workers:
        await worker.close()
        assert worker.core.pool.num_held == 0
    host.close()


def order(name="r", kv_params=None, last_resort=False, **params):
    wanted = SamplingParams(**({"max_tokens": 10} | params))
    request = Request(request_id=name, prompt_token_ids=list(range(5, 105)), params=wanted)
    return Order(request, kv_params or {}, last_resort=last_resort)


async def tokens(worker, order):
    return [token async for delta in worker.generate(order) for token in delta.token_ids]


async def test_many_streams_get_what_each_gets_alone(start):
    worker = start()
    alone = await tokens(worker, order("alone", seed=3))

    found = await asyncio.gather(*(tokens(worker, order(str(n), seed=n)) for n in range(20)))

    assert found[3] == alone
    assert len({tuple(each) for each in found}) == 20


async def test_closing_ends_every_stream_and_prefill_with_the_reason(start):
    worker = start(SLOW)
    waiting = [
        asyncio.create_task(tokens(worker, order("a"))),
        asyncio.create_task(worker.prefill(order("b", GIVE, max_tokens=1))),
    ]
    await asyncio.sleep(0)

    await worker.close()

    for task in waiting:
        with pytest.raises(EngineDead, match="closed"):
            await task
    with pytest.raises(EngineDead):
        await tokens(worker, order("late"))


async def test_a_step_that_fails_ends_the_worker_and_tells_all(start):
    worker = start()
    worker.core.step = lambda now: 1 / 0

    with pytest.raises(EngineDead, match="ZeroDivisionError"):
        await tokens(worker, order())
    with pytest.raises(EngineDead):
        await worker.prefill(order("b", GIVE, max_tokens=1))


async def test_one_that_drains_declines_but_for_a_last_resort(start):
    worker = start()
    changes = []
    worker.on_change = lambda: changes.append(worker.load()["draining"])

    worker.drain()

    assert changes == [True]
    with pytest.raises(Declined):
        await tokens(worker, order("a"))
    with pytest.raises(Declined):
        await worker.prefill(order("b", GIVE, max_tokens=1))
    assert len(await tokens(worker, order("c", last_resort=True))) == 10
    async with asyncio.timeout(30.0):
        await worker.told_to_leave()


async def test_a_cancelled_prefill_leaves_nothing(start):
    worker = start(SLOW)
    task = asyncio.create_task(worker.prefill(order("b", GIVE, max_tokens=1)))
    await asyncio.sleep(0)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert worker.core.pool.num_held == worker.num_pinned == 0
    assert not worker.core.scheduler.has_work


async def test_wrong_requests_are_refused_before_anything_is_held(start):
    worker = start()

    with pytest.raises(RequestError, match="logprobs"):
        await tokens(worker, order(logprobs=2))
    with pytest.raises(RequestError, match="p2p"):
        await tokens(worker, order(kv_params={"p2p": 3}))

    assert worker.core.pool.num_held == 0
