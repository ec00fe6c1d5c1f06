"""Readers that keep the loop busy are woken in rounds, each for more; nobody is forgotten."""

import asyncio
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.workers.request import OutputDelta
from stafette.workers.service.deliveries import Deliveries
from stafette.workers.service.inbox import Inbox


def token(number: int) -> OutputDelta:
    return OutputDelta("r", 0, [number], "")


async def read(inbox: Inbox, most: int, work_s: float) -> list[list[int]]:
    """Return what each look brought; every look keeps the loop busy."""
    looks: list[list[int]] = []
    while sum(map(len, looks)) < most:
        looks.append([each.token_ids[0] for each in await inbox.next()])
        end = time.perf_counter() + work_s
        while time.perf_counter() < end:
            pass
    return looks


async def looks_at(pauses: list[bool], work_s: float) -> list[list[int]]:
    deliveries = Deliveries()
    inbox = Inbox(deliveries)
    reading = asyncio.create_task(read(inbox, len(pauses), work_s))
    for number, pause in enumerate(pauses):
        inbox.put(token(number))
        if pause:
            await asyncio.sleep(0)
    return await reading


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.sampled_from([0.0, 0.0015]))
@settings(max_examples=40, deadline=None)
def test_everything_arrives_once_and_in_order(pauses, work_s):
    looks = asyncio.run(looks_at(pauses, work_s))

    assert [number for look in looks for number in look] == list(range(len(pauses)))


async def test_a_reader_that_is_quick_gets_each_token_when_it_comes():
    deliveries = Deliveries()
    inbox = Inbox(deliveries)
    reading = asyncio.create_task(read(inbox, 5, 0.0))
    for number in range(5):
        inbox.put(token(number))
        while inbox.unread:
            await asyncio.sleep(0)

    assert await reading == [[0], [1], [2], [3], [4]]


async def test_what_comes_together_is_read_in_one_turn_by_all():
    deliveries = Deliveries()
    inboxes = [Inbox(deliveries) for _ in range(4)]
    readers = [asyncio.create_task(inbox.next()) for inbox in inboxes]
    await asyncio.sleep(0)  # they wait

    for inbox in inboxes:
        inbox.put(token(0))
    await asyncio.sleep(0)  # the readers' futures
    await asyncio.sleep(0)

    assert all(reader.done() for reader in readers)


async def test_readers_that_are_slow_get_more_at_once():
    deliveries = Deliveries()
    inboxes = [Inbox(deliveries) for _ in range(4)]
    readers = [asyncio.create_task(read(inbox, 40, 0.001)) for inbox in inboxes]
    for number in range(40):  # as a stream does that has much to read
        await asyncio.sleep(0.0002)
        for inbox in inboxes:
            inbox.put(token(number))

    for looks in await asyncio.gather(*readers):
        assert [number for look in looks for number in look] == list(range(40))
        assert len(looks) < 20
