"""Requests are placed, held until there is room, booked until they end, or their client does."""

import asyncio

import pytest

from stafette.router.service.client import Refused

PROMPT = list(range(1, 161))
LOAD = {"queued_tokens": 0, "running": 0, "used_blocks": 0}


def placed(served) -> int:
    return len(served.service.router.sharing.own)


async def test_a_session_is_hashed_only_where_it_has_grown(serve):
    served = await serve()
    await served.client.register("a", 16)
    counters = served.service.prompts.counters

    for number in range(1, 11):
        turn = {"session": "chat", "tenant": "alice", "reserve": False}
        await served.client.select(f"r{number}", PROMPT[: 16 * number], **turn)
    mine = counters.hashed_blocks
    await served.client.select("r", PROMPT, session="chat", tenant="bob", reserve=False)

    assert mine == 10
    assert counters.hashed_blocks == 20


async def test_tenants_with_salts_share_nothing(serve):
    served = await serve()
    await served.client.register("a", 16)
    await served.client.select("r1", PROMPT, salt="alice")

    own = await served.client.select("r2", PROMPT, salt="alice", reserve=False)
    other = await served.client.select("r3", PROMPT, salt="bob", reserve=False)

    assert (own.cached_tokens, other.cached_tokens) == (159, 0)


async def test_what_was_only_told_can_be_booked_afterwards(serve):
    served = await serve()
    for name in "abc":
        await served.client.register(name, 16)

    told = await served.client.select("r", PROMPT, reserve=False)
    before = placed(served)
    booked = await served.client.reserve("r")

    assert (before, placed(served)) == (0, 1)
    assert booked == told
    with pytest.raises(Refused, match="is placed already"):
        await served.client.reserve("r")


async def test_a_decision_for_a_worker_that_left_is_not_booked(serve):
    served = await serve()
    await served.client.register("a", 16)
    await served.client.select("r", PROMPT, reserve=False)
    await served.client.unregister("a")

    with pytest.raises(Refused, match="a is not registered") as refused:
        await served.client.reserve("r")

    assert (refused.value.code, placed(served)) == ("unknown_worker", 0)


async def test_a_request_lives_from_its_placement_to_its_end(serve):
    served = await serve()
    await served.client.register("a", 16)

    async def load():
        (worker,) = (await served.client.workers())["workers"]
        return tuple(worker["load"][name] for name in ("waiting", "running", "used_blocks"))

    await served.client.select("r", PROMPT)
    waiting = await load()
    await served.client.first_token("r", cached_tokens=0, ttft_ms=12.5)
    running = await load()
    await served.client.progress("r", 33)
    later = await load()
    await served.client.free("r", output_tokens=33)

    assert (waiting, running, later) == ((1, 0, 10), (0, 1, 10), (0, 1, 13))
    assert await load() == (0, 0, 0)
    (decision,) = (await served.client.explain(request_id="r"))["decisions"]
    assert decision["actual"] == {"ttft_ms": 12.5, "cached_tokens": 0}


async def test_a_prompt_is_computed_on_one_worker_and_decoded_on_another(serve):
    served = await serve()
    await served.client.register("p", 16, role="prefill")
    await served.client.register("d", 16, role="decode", host="h")
    await served.client.post("state", worker="d", role="decode")
    for number in range(4):  # whoever decodes there would wait for it
        await served.client.select(f"r{number}", PROMPT[:16], pinned="d")
        await served.client.first_token(f"r{number}")

    selected = await served.client.select("long", list(range(8_000)))

    assert (selected.decode, selected.prefill) == ("d", "p")


async def test_a_client_that_dies_gives_its_reservations_back(serve, clock, eventually):
    served = await serve(clock=clock)
    await served.client.register("a", 16)
    await served.client.select("mine", PROMPT, client="c", ttl_s=10)
    await served.client.select("mine too", PROMPT, client="c", ttl_s=10)
    await served.client.select("alone", PROMPT, ttl_s=10)
    await served.client.select("for ever", PROMPT)

    clock.now += 9
    await served.client.progress("mine", 1)
    clock.now += 2
    await eventually(lambda: placed(served) == 3)
    assert await served.client.heartbeat("c") == 2
    clock.now += 9.9
    served.service.tick()
    assert placed(served) == 3
    clock.now += 0.2
    await eventually(lambda: placed(served) == 1)

    with pytest.raises(Refused, match="it was freed before, has expired, or was never placed"):
        await served.client.free("mine")
    await served.client.free("for ever")
    assert await served.client.heartbeat("c") == 0


async def test_a_worker_that_says_nothing_takes_no_requests_until_it_speaks(
    serve, clock, eventually
):
    served = await serve(clock=clock)
    await served.client.register("a", 16, ttl_s=5)
    members = served.service.router.fleet.members

    clock.now += 5
    await eventually(lambda: not members["a"].healthy)
    with pytest.raises(Refused, match="a: is not healthy"):
        await served.client.select("r", PROMPT)
    (shown,) = (await served.client.workers())["workers"]
    await served.client.post("load", worker="a", **LOAD)

    assert shown["why"] == ["its lease is over"]
    assert (await served.client.select("r", PROMPT)).decode == "a"


async def test_a_workers_own_report_counts(serve):
    served = await serve()
    for name in "ab":
        await served.client.register(name, 16)

    await served.client.post("load", worker="a", **(LOAD | {"queued_tokens": 50_000}))
    step = {"wall_ms": 100.0, "prefill_tokens": 1000}
    answer = await served.client.post("steps", worker="b", steps=[step, {"wall_ms": -1.0}])

    assert answer["rejected"] == 1
    assert (await served.client.select("r", PROMPT)).decode == "b"


async def test_a_request_is_held_until_a_worker_is_free(serve, clock, eventually):
    served = await serve(clock=clock, admission={"max_target_queue_ms": 0})
    await served.client.register("a", 16)
    await served.client.select("first", PROMPT)
    room = served.service.requests.room

    second = asyncio.create_task(served.another_client().select("second", PROMPT))
    await eventually(lambda: len(room) == 1)
    served.service.tick()
    assert not second.done()
    await served.client.first_token("first")

    assert (await second).decode == "a"
    assert len(room) == 0


async def test_whoever_cannot_be_served_in_time_is_told_when_to_come_again(serve, clock):
    served = await serve(clock=clock, admission={"max_target_queue_ms": 0})
    await served.client.register("a", 16)

    with pytest.raises(Refused, match="the first token would come .* too late") as refused:
        await served.client.select("r", list(range(100_000)), deadline_s=0.001)

    assert (refused.value.status, refused.value.code) == (429, "rejected")
    assert refused.value.retry_after_s >= 1


async def test_a_full_queue_and_a_long_wait_are_429(serve, clock):
    served = await serve(
        clock=clock,
        admission={"max_target_queue_ms": 0, "max_waiting": 1},
        service={"max_wait_s": 0.3},
    )
    await served.client.register("a", 16)
    await served.client.select("first", PROMPT)
    second = asyncio.create_task(served.another_client().select("second", PROMPT))
    while not len(served.service.requests.room):
        await asyncio.sleep(0.001)

    with pytest.raises(Refused, match="1 requests wait already"):
        await served.client.select("third", PROMPT)
    with pytest.raises(Refused, match="it waited 0.3 s for a free worker") as refused:
        await second

    assert (refused.value.status, refused.value.code) == (429, "rejected")
    assert served.service.requests.room.rejected == 2


async def test_a_client_that_hangs_up_while_it_waits_holds_nothing(serve, clock, eventually):
    served = await serve(clock=clock, admission={"max_target_queue_ms": 0})
    await served.client.register("a", 16)
    await served.client.select("first", PROMPT)
    waiting = asyncio.create_task(served.another_client().select("second", PROMPT))
    await eventually(lambda: len(served.service.requests.room) == 1)

    waiting.cancel()
    await eventually(lambda: len(served.service.requests.room) == 0)
    await served.client.free("first")

    await eventually(lambda: not len(served.service.requests.room.admission.queue))
    assert placed(served) == 0


async def test_whoever_waits_when_the_service_ends_is_told_to_ask_another(serve, clock, eventually):
    served = await serve(clock=clock, admission={"max_target_queue_ms": 0})
    await served.client.register("a", 16)
    await served.client.select("first", PROMPT)
    waiting = asyncio.create_task(served.another_client().select("second", PROMPT))
    await eventually(lambda: len(served.service.requests.room) == 1)

    served.service.requests.room.close()

    with pytest.raises(Refused, match="this router is about to end") as refused:
        await waiting
    assert (refused.value.status, refused.value.code) == (503, "stopping")
