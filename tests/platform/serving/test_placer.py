"""How long an answer waits for a worker."""

import asyncio
from types import SimpleNamespace

import pytest

from stafette.platform.frontend.errors import Unavailable
from stafette.platform.frontend.generator import Hints
from stafette.platform.serving.config import DispatchConfig
from stafette.platform.serving.course import Course
from stafette.platform.serving.placer import Placer
from stafette.router.errors import NoCandidate
from stafette.router.hashing import Hashers, PromptHasher
from stafette.router.router import Placement
from stafette.workers import SamplingParams
from stafette.workers.request import Request

PLACEMENT = Placement("r-0-1", "d0", None, None, 0, 0.0)


class FakeRouter:
    """Has a candidate when the fleet has a worker that is not full."""

    expected_output_tokens = 100

    def __init__(self) -> None:
        self.full = True

    def place(self, asked):
        if self.full:
            raise NoCandidate({})
        return PLACEMENT


@pytest.fixture
def fleet():
    changed = asyncio.Event()
    return SimpleNamespace(router=FakeRouter(), changed=changed, clients={}, draining=frozenset())


def placer(fleet, **config):
    hasher = PromptHasher(Hashers("the key", 16))
    return Placer(DispatchConfig(model="m", wait_s=0.05, **config), fleet, hasher)


def course():
    request = Request(request_id="r", prompt_token_ids=list(range(40)), params=SamplingParams())
    return Course(request, 0, Hints(), SimpleNamespace(token_ids=[]))


async def test_where_nobody_starts_workers_the_wait_is_short(fleet):
    with pytest.raises(Unavailable):
        await placer(fleet, wake_wait_s=60.0).place(course(), "r-0-1")


async def test_a_fleet_that_is_asleep_is_waited_for_and_told_at_once(fleet):
    waits, told = placer(fleet, wakes=True, wake_wait_s=60.0), []
    waits.on_waiting = lambda: told.append(waits.num_waiting)
    placing = asyncio.create_task(waits.place(course(), "r-0-1"))
    await asyncio.sleep(0.2)  # well beyond wait_s
    assert not placing.done()

    fleet.router.full = False
    fleet.changed.set()

    assert await placing == PLACEMENT
    assert (told, waits.num_waiting) == ([1], 0)


async def test_who_does_not_wake_in_time_is_not_waited_for(fleet):
    waits = placer(fleet, wakes=True, wake_wait_s=0.1)

    with pytest.raises(Unavailable):
        await waits.place(course(), "r-0-1")

    assert waits.num_waiting == 0


async def test_those_who_are_awake_and_full_are_waited_for_as_ever(fleet):
    fleet.clients["d0"] = object()

    with pytest.raises(Unavailable):
        await placer(fleet, wakes=True, wake_wait_s=60.0).place(course(), "r-0-1")
