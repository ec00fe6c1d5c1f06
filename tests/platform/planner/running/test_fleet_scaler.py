"""How plans are carried out: who leaves, and when the number changes."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.platform.planner.plan import Plan, RoleFlip
from stafette.platform.planner.running.fleet_scaler import Farewells, FleetScaler, Step
from stafette.platform.planner.running.gathering import Unseen
from stafette.workers.errors import WorkerLost

POOL = "decode"


class ServedPool:
    """Replicas as Ray Serve keeps them: an empty one that retires is replaced, the newest goes."""

    def __init__(self, count: int) -> None:
        self.target = count
        self.made = 0
        self.running: list[str] = []
        self.starting: list[str] = []
        self.retiring: set[str] = set()
        self.chosen_by_serve: list[str] = []
        for _ in range(count):
            self._start()
        self.turn(everybody_ready=True)

    def resize(self, target: int) -> None:
        self.target = target
        while len(self.running) + len(self.starting) > target:
            if self.starting:
                self.starting.pop()
            else:
                name = self.running.pop()
                if name not in self.retiring:
                    self.chosen_by_serve.append(name)
        self._fill()

    def turn(self, everybody_ready: bool, leaves: bool = True) -> None:
        if everybody_ready:
            self.running += self.starting
            self.starting = []
        if leaves and self.retiring:
            name = min(self.retiring)
            self.retiring.discard(name)
            if name in self.running:
                self.running.remove(name)
        self._fill()

    def _fill(self) -> None:
        while len(self.running) + len(self.starting) < self.target:
            self._start()

    def _start(self) -> None:
        self.made += 1
        self.starting.append(f"{POOL}-{self.made}")


def release_of(pool: ServedPool, wanted: int) -> list[str]:
    surplus = max(0, len(pool.running) - wanted)
    return sorted(pool.running, key=lambda name: (name not in pool.retiring, name))[:surplus]


@given(
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), max_size=25),
)
def test_whatever_is_wanted_comes_about_and_serve_never_chooses_who_leaves(begin, wishes):
    pool, farewells = ServedPool(begin), Farewells()
    wishes = wishes + [(wishes[-1][0] if wishes else begin, True, True)] * 12
    for wanted, ready, leaves in wishes:
        release = release_of(pool, wanted)
        step = farewells.step(wanted, pool.target, release, list(pool.running), now=0.0)
        pool.retiring -= set(step.resume)
        for name in step.retire:
            pool.retiring.add(name)
            farewells.told(name, 60.0)
        if step.replicas is not None:
            assert step.replicas >= wanted or wanted > pool.target
            pool.resize(step.replicas)
        pool.turn(ready, leaves)

    assert (pool.target, len(pool.running)) == (wanted, wanted)
    assert not pool.retiring
    if all(wanted for wanted, _, _ in wishes):
        assert not pool.chosen_by_serve


def test_who_is_late_is_left_to_serve():
    farewells = Farewells()

    first = farewells.step(1, 2, ["decode-1"], ["decode-1", "decode-2"], now=0.0)
    farewells.told("decode-1", 60.0)
    waiting = farewells.step(1, 2, ["decode-1"], ["decode-1", "decode-2"], now=59.0)
    late = farewells.step(1, 2, ["decode-1"], ["decode-1", "decode-2"], now=61.0)

    assert first == Step(None, retire=("decode-1",))
    assert waiting == Step()
    assert late == Step(1)


def test_one_that_was_to_leave_stays_when_it_is_wanted_again():
    farewells = Farewells()
    farewells.told("decode-1", 60.0)

    step = farewells.step(2, 2, [], ["decode-1", "decode-2"], now=1.0)

    assert step == Step(resume=("decode-1",))
    assert farewells.step(2, 2, [], ["decode-1", "decode-2"], now=2.0) == Step()


class FakeWorker:
    def __init__(self) -> None:
        self.asked: list[tuple[str, object]] = []

    async def ask(self, operation, payload, timeout_s):
        self.asked.append((operation, payload))


class FakeLinks:
    def __init__(self, *names: str) -> None:
        self.clients = {name: FakeWorker() for name in names}

    def client(self, name):
        if name not in self.clients:
            raise WorkerLost("worker", name, "it is not connected")
        return self.clients[name]


class FakeSizes:
    def __init__(self, failure=None, **targets: int) -> None:
        self.now = targets
        self.failure = failure
        self.silent = asyncio.Event()
        self.silent.set()

    async def targets(self):
        await self.silent.wait()
        if isinstance(self.failure, Unseen):
            raise self.failure
        return dict(self.now)

    async def resize(self, pool, replicas):
        if self.failure is not None:
            raise self.failure
        self.now[pool] = replicas


@pytest.fixture
def make():
    def make_scaler(sizes, links):
        return FleetScaler(sizes, links, {"prefill": 10.0, "decode": 10.0}, lambda: 0.0)

    return make_scaler


async def carried_out(scaler, plan):
    scaler.apply(plan)
    for _ in range(20):
        await asyncio.sleep(0)
    return {(effect.subject, effect.wish): effect for effect in scaler.effects()}


async def test_both_pools_and_roles_change_with_one_plan(make):
    sizes, links = FakeSizes(prefill=1, decode=3), FakeLinks("prefill-1", "decode-1", "decode-2")
    plan = Plan(
        at=0.0,
        replicas={"prefill": 4, "decode": 0},
        flips=[RoleFlip("decode-1", "decode", "both"), RoleFlip("decode-9", "decode", "both")],
    )

    effects = await carried_out(make(sizes, links), plan)

    assert sizes.now == {"prefill": 4, "decode": 0}
    assert links.clients["decode-1"].asked == [("set_role", "both")]
    assert effects["decode-1", "role both"].state == "done"
    assert "not connected" in effects["decode-9", "role both"].reason
    assert effects["prefill", "4 replicas"].state == "asked"


async def test_a_held_plan_changes_nothing(make):
    sizes, links = FakeSizes(prefill=1, decode=1), FakeLinks()
    plan = Plan(at=0.0, replicas={"prefill": 4, "decode": 4}, held="half a picture")

    assert await carried_out(make(sizes, links), plan) == {}
    assert sizes.now == {"prefill": 1, "decode": 1}


@pytest.mark.parametrize("failure", [Unseen("the controller is away"), ValueError("not allowed")])
async def test_a_size_that_cannot_be_changed_is_told_once_with_its_reason(make, failure):
    sizes = FakeSizes(failure, prefill=1, decode=1)
    scaler, plan = make(sizes, FakeLinks()), Plan(at=0.0, replicas={"prefill": 2})

    effects = await carried_out(scaler, plan)
    again = await carried_out(scaler, plan)
    sizes.failure = None
    at_last = await carried_out(scaler, plan)

    (effect,) = effects.values()
    assert (effect.state, effect.reason) == ("failed", str(failure))
    assert again == {}
    assert at_last["prefill", "2 replicas"].state == "asked"


async def test_a_pool_that_is_being_changed_is_not_changed_twice_at_a_time(make):
    sizes, links = FakeSizes(prefill=1, decode=1), FakeLinks()
    scaler = make(sizes, links)
    sizes.silent.clear()
    await carried_out(scaler, Plan(at=0.0, replicas={"prefill": 2}))
    await carried_out(scaler, Plan(at=1.0, replicas={"prefill": 3}))
    sizes.silent.set()

    await carried_out(scaler, Plan(at=2.0, replicas={}))
    assert sizes.now["prefill"] == 2
    await carried_out(scaler, Plan(at=3.0, replicas={"prefill": 3}))
    assert sizes.now["prefill"] == 3
    await scaler.close()
