"""The planner at work on what real desks and mock workers say over their streams."""

import asyncio
import math
from types import SimpleNamespace

import pytest

from stafette.kvtransfer.agent_config import AgentConfig
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.planner.config import PlannerConfig, PoolLimits
from stafette.platform.planner.observation import WorkerState
from stafette.platform.planner.planner import Planner
from stafette.platform.planner.pool_spec import PoolSpec
from stafette.platform.planner.running.frontends import FrontendLinks
from stafette.platform.planner.running.gathering import Gatherer, Unseen, pool_state
from stafette.platform.planner.running.pin_keeping import PinKeeper
from stafette.platform.planner.running.service import PlannerService
from stafette.platform.planner.scaler import DryRun
from stafette.platform.serving.desk import Desk
from stafette.platform.serving.links import Links
from stafette.platform.serving.traffic import TrafficBook
from stafette.workers.config import EngineConfig
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.host import MockHost
from stafette.workers.mocker.worker import MockWorker
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.server import WorkerServer

SERVICE = ServiceConfig(token=b"the token of a tested cluster", beat_s=0.05, silence_s=5.0)
FLAGS = EngineConfig(model="mock", num_kv_blocks=500, max_model_len=1_024, max_num_seqs=7)
PATIENCE_S = 30.0


class FakeSizes:
    def __init__(self, **targets: int) -> None:
        self.now = targets
        self.failure: Unseen | None = None

    async def targets(self):
        if self.failure is not None:
            raise self.failure
        return dict(self.now)

    async def resize(self, pool, replicas):
        self.now[pool] = replicas


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """Desks of frontends, mock workers, and the planner that looks at them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.sizes = FakeSizes(aggregated=1)
        self.dispatchers: dict[str, SimpleNamespace] = {}
        self.servers: dict[str, WorkerServer] = {}
        self.frontends = FrontendLinks(SERVICE)
        self.workers = Links("planner", SERVICE)
        self._links = [self.frontends, self.workers]
        self._worker: tuple[MockWorker, MockHost] | None = None

    def service(self, **config) -> PlannerService:
        limits = PoolLimits(min_replicas=0, max_replicas=4)
        config = PlannerConfig(mode="on", pools={"aggregated": limits}, **config)
        planner = Planner(config, {"aggregated": PoolSpec(role="both", limits=limits)})
        gatherer = Gatherer(
            self.frontends, self.workers, self.sizes, list(planner.pools), self.clock
        )
        keeper = PinKeeper(planner.pins, self.frontends, self.clock)
        return PlannerService(planner, gatherer, DryRun(), keeper, self.clock)

    async def look(self, service: PlannerService, after_s: float = 1.0):
        self.clock.now += after_s
        return await service.look()

    async def open_desk(self, name: str) -> SimpleNamespace:
        placer = SimpleNamespace(num_waiting=0, on_waiting=None)
        dispatcher = SimpleNamespace(placer=placer, traffic=TrafficBook())
        self.servers[name] = await WorkerServer.start(Desk(name, dispatcher), SERVICE)
        self.dispatchers[name] = dispatcher
        await self.follow()
        return dispatcher

    async def close_desk(self, name: str) -> None:
        await self.servers.pop(name).stop()
        await self.follow()

    async def start_worker(self, name: str) -> MockWorker:
        host = MockHost(AgentConfig(name=name, token=SERVICE.token, transports=("tcp",)))
        worker = MockWorker(MockerConfig(name=name, engine=FLAGS), host)
        server = self.servers[name] = await WorkerServer.start(worker, SERVICE)
        self._worker = (worker, host)
        self.workers.follow({name: server.address})
        await self.await_that(lambda: name in self.workers.clients)
        await self.await_that(lambda: self.workers.client(name).load)
        return worker

    async def follow(self) -> None:
        addresses = {n: s.address for n, s in self.servers.items() if n.startswith("front")}
        self.frontends.follow(addresses)
        await self.await_that(lambda: self.frontends.clients.keys() == addresses.keys())

    async def await_that(self, condition) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        for links in self._links:
            await links.close()
        if self._worker is not None:
            worker, host = self._worker
            await worker.close()
            host.close()
        for server in self.servers.values():
            await server.stop()


@pytest.fixture
async def rig():
    rig = Rig()
    yield rig
    await rig.close()


async def test_it_sees_what_frontends_and_workers_tell(rig):
    one, two = await rig.open_desk("frontend-1"), await rig.open_desk("frontend-2")
    await rig.start_worker("aggregated-1")
    service = rig.service()
    await rig.look(service)
    for dispatcher in (one, one, two):
        dispatcher.traffic.arrivals += 1
    one.traffic.started.add((700, 64))
    two.traffic.finished.add((700, 20, 150.0, 12.0, 3.0))
    two.placer.num_waiting = 1

    plan = await rig.look(service)

    model = service.planner.beliefs.decode
    assert (model.kv_tokens, model.max_num_seqs) == (500 * 16, 7)
    seen = plan.explanation.observed
    assert (plan.held, seen["prompt_tokens"], seen["waiting"]) == (None, 700, 1)
    assert seen["hit_rate"] == pytest.approx(64 / 700)
    assert (seen["ttft_ms"], seen["itl_ms"]) == (150.0, 12.0)
    assert seen["rate"] == pytest.approx(3 / 2)  # in two seconds
    told = service.overview(last=1)
    assert told["pools"]["aggregated"] == {
        "role": "both",
        "min_replicas": 0,
        "max_replicas": 4,
        "target": 1,
        "ready": 1,
        "planned": told["plans"][0]["replicas"]["aggregated"],
        "pin": None,
    }


async def test_a_frontend_that_has_gone_is_no_reason_to_hold(rig):
    await rig.open_desk("frontend-1")
    await rig.open_desk("frontend-2")
    service = rig.service()
    await rig.look(service)
    await rig.close_desk("frontend-2")

    assert (await rig.look(service)).held is None


async def test_numbers_that_are_none_and_clocks_that_jump_hold_everything(rig):
    dispatcher = await rig.open_desk("frontend-1")
    service = rig.service()
    first = await rig.look(service)
    dispatcher.traffic.finished.add((700, 20, math.nan, 12.0, 3.0))

    not_a_number = await rig.look(service)
    calm = await rig.look(service)
    backwards = await rig.look(service, after_s=-30.0)
    jumped = await rig.look(service, after_s=4_000.0)

    assert "ttft_ms = nan" in not_a_number.held
    assert "clock has gone back" in backwards.held
    assert "clock has jumped" in jumped.held
    assert (first.held, calm.held) == (None, None)
    assert jumped.replicas == calm.replicas


async def test_whoever_is_silent_is_named_and_nothing_changes(rig):
    await rig.open_desk("frontend-1")
    service = rig.service()
    before = await rig.look(service)
    rig.sizes.failure = Unseen("Ray Serve's controller is silent for 5 s")

    held = await rig.look(service)
    rig.sizes.failure = None

    assert held.held == "Ray Serve's controller is silent for 5 s"
    assert held.replicas == before.replicas
    assert (await rig.look(service)).held is None


async def test_a_request_without_a_worker_is_told_at_once(rig):
    dispatcher = await rig.open_desk("frontend-1")
    waiting = asyncio.Event()
    rig.frontends.on_waiting = waiting.set
    rig.sizes.now["aggregated"] = 0
    service = rig.service()
    assert (await rig.look(service)).replicas == {"aggregated": 0}

    dispatcher.placer.num_waiting = 1
    dispatcher.traffic.arrivals += 1
    dispatcher.placer.on_waiting()
    async with asyncio.timeout(PATIENCE_S):
        await waiting.wait()
    plan = await rig.look(service)

    assert plan.replicas["aggregated"] >= 1


async def test_only_the_first_request_of_a_fleet_that_sleeps_hurries_the_planner(rig):
    await rig.open_desk("frontend-1")
    rig.sizes.now["aggregated"] = 0
    service = rig.service(interval_s=60.0)
    running = asyncio.create_task(service.run())
    service.hurry()
    await rig.await_that(lambda: len(service.planner.plans) == 1)

    rig.clock.now += 1.0
    rig.dispatchers["frontend-1"].placer.num_waiting = 1
    service.wake()
    await rig.await_that(lambda: len(service.planner.plans) == 2)
    rig.clock.now += 1.0
    service.wake()
    await asyncio.sleep(0.3)  # in which it would have looked

    assert len(service.planner.plans) == 2
    running.cancel()


async def test_pins_outlive_the_planner_and_the_latest_word_counts(rig):
    await rig.open_desk("frontend-1")
    first = rig.service()
    await rig.look(first)
    await first.pin("aggregated", 3, 600.0)
    assert (await rig.look(first)).replicas == {"aggregated": 3}

    second = rig.service()
    plan = await rig.look(second)
    assert plan.replicas == {"aggregated": 3}
    assert second.overview(1)["pools"]["aggregated"]["pin"]["replicas"] == 3

    assert await second.unpin("aggregated")
    await rig.look(second)
    third = rig.service()
    await rig.look(third)
    assert third.overview(1)["pools"]["aggregated"]["pin"] is None


@pytest.mark.parametrize(
    ("pool", "replicas", "for_s", "words"),
    [
        ("other", 1, 60.0, "pool = 'other': is not planned; there are aggregated"),
        ("aggregated", -1, 60.0, "replicas = -1"),
        ("aggregated", 1, 0.0, "for_s = 0.0"),
        ("aggregated", 1, math.nan, "for_s = nan"),
    ],
)
async def test_a_pin_that_cannot_be_is_refused(rig, pool, replicas, for_s, words):
    await rig.open_desk("frontend-1")
    service = rig.service()
    await rig.look(service)

    with pytest.raises(InvalidSetting, match="=") as refused:
        await service.pin(pool, replicas, for_s)

    assert words in str(refused.value)


async def test_plans_that_say_the_same_are_told_once(rig):
    await rig.open_desk("frontend-1")
    service = rig.service()
    for _ in range(5):
        await rig.look(service)
    await service.pin("aggregated", 2, 600.0)
    await rig.look(service)

    newest, *older = service.overview(last=10)["plans"]

    assert (newest["replicas"], newest["plans"]) == ({"aggregated": 2}, 1)
    assert sum(plan["plans"] for plan in older) == 5
    assert len(service.overview(last=1)["plans"]) == 1


@pytest.mark.parametrize(
    ("asked", "workers", "leaving", "numbers"),
    [
        (3, "aaa", (), (3, 3, 0)),
        (3, "aa", (), (3, 2, 1)),
        (3, "aad", {"decode-2"}, (2, 2, 0)),  # by the planner: nobody comes for it
        (3, "aad", (), (3, 2, 1)),  # by Serve: another one comes
        (1, "aad", {"decode-2"}, (0, 2, 0)),
    ],
)
def test_a_pool_is_counted_without_those_who_were_asked_to_leave(asked, workers, leaving, numbers):
    states = [
        WorkerState(name=f"decode-{i}", pool="decode", role="decode", draining=each == "d")
        for i, each in enumerate(workers)
    ]

    state = pool_state(asked, states, leaving)

    assert (state.target, state.ready, state.starting) == numbers
