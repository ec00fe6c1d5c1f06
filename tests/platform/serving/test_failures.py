"""What breaks, and what the client sees of it: the right tokens, or an honest refusal."""

import asyncio

import pytest

from benchmarks.serving.nursery import TOKEN
from stafette.platform.frontend.errors import TooMany
from stafette.platform.frontend.generator import Hints
from stafette.platform.serving.passing import HandOff, for_one_token
from stafette.router.filters import FilterConfig
from stafette.router.router import RouterConfig
from stafette.workers.service.config import ServiceConfig
from stafette.workers.service.frames import Order

STORY = "Once upon a time there was a relay team that ran through seven countries. "
LONG = STORY * 20  # some 300 tokens


def service(silence_s: float) -> ServiceConfig:
    return ServiceConfig(token=TOKEN.encode(), beat_s=0.2, silence_s=silence_s)


async def test_a_prefill_worker_that_stands_still_is_given_up_and_may_come_back(make_rig, expected):
    rig = make_rig(service=service(0.6))
    await rig.start("p0", "d0", step_s=0.1)
    rig.keep_apart("p0", "d0")
    answer = asyncio.create_task(rig.answer(rig.request("r", LONG, max_tokens=8)))
    await rig.await_stats("p0", lambda stats: stats["running"] == 1)
    rig.place_freely()

    rig.workers["p0"].stop()

    assert await answer == expected(LONG, max_tokens=8)
    assert rig.dispatcher.counters.handover_failures == 1
    rig.workers["p0"].go_on()
    await rig.await_that(lambda: "p0" in rig.fleet.clients)
    await rig.await_stats("p0", lambda stats: not stats["running"] and not stats["used_blocks"])
    rig.keep_apart("p0", "d0")
    assert await rig.answer(rig.request("next", STORY * 3)) == expected(STORY * 3)


async def test_a_decode_worker_notices_by_itself_that_its_source_stands_still(make_rig, expected):
    rig = make_rig(service=service(500.0))  # the frontend notices nothing
    await rig.start("p0", step_s=0.1)
    await rig.start("d0", p2p={"silence_s": 0.2, "answer_timeout_s": 0.3})
    rig.keep_apart("p0", "d0")
    answer = asyncio.create_task(rig.answer(rig.request("r", LONG, max_tokens=8)))
    await rig.await_stats("p0", lambda stats: stats["running"] == 1)

    rig.workers["p0"].stop()

    assert await answer == expected(LONG, max_tokens=8)
    assert (await rig.stats("d0"))["shortfalls"] == {"TransferTimedOut": 1}


async def test_a_source_that_is_only_slow_is_waited_for(make_rig, expected):
    rig = make_rig()
    await rig.start("p0", step_s=0.4)
    await rig.start("d0", p2p={"silence_s": 0.05, "answer_timeout_s": 20.0})
    rig.keep_apart("p0", "d0")

    assert await rig.answer(rig.request("r", LONG, max_tokens=8)) == expected(LONG, max_tokens=8)

    assert not (await rig.stats("d0"))["shortfalls"]


async def test_a_frontend_that_dies_takes_its_answers_along_and_no_others(rig, expected):
    await rig.start("d0", step_s=0.02)
    other = await rig.make_frontend("d0", 3)
    answer = await rig.begin(rig.request("r", STORY, max_tokens=60))
    assert (await rig.stats("d0"))["running"] == 4

    other.kill()

    await rig.await_stats("d0", lambda stats: stats["running"] <= 1)
    assert await answer == expected(STORY, max_tokens=60)


async def test_without_events_and_with_an_index_that_is_wrong_the_tokens_are_right(rig, expected):
    await rig.start("b0", "b1")
    assert await rig.answer(rig.request("r", LONG)) == expected(LONG)

    rig.events.close()
    for name in ("b0", "b1"):
        await rig.ask(name, "reset_prefix_cache")

    for number, prompt in enumerate((LONG, LONG + STORY, STORY)):
        assert await rig.answer(rig.request(f"r{number}", prompt)) == expected(prompt)


async def test_more_than_fits_waits_its_turn(rig, expected):
    await rig.start("b0", engine={"num_kv_blocks": 64, "max_num_seqs": 4})
    prompts = [f"{STORY * 8} Number {i}:" for i in range(12)]

    found = await asyncio.gather(
        *(rig.answer(rig.request(f"r{i}", prompt)) for i, prompt in enumerate(prompts))
    )

    assert found == [expected(prompt) for prompt in prompts]


async def test_with_all_workers_full_a_client_is_told_when_to_come_again(make_rig, expected):
    filters = FilterConfig(max_used_share=0.5)
    rig = make_rig(router=RouterConfig(filters=filters), wait_s=0.05, retry_after_s=7.0)
    await rig.start("b0", step_s=0.02, engine={"num_kv_blocks": 64, "max_num_seqs": 4})
    prompts = [f"Number {i}: {STORY * 8}" for i in range(12)]

    found = await asyncio.gather(
        *(rig.answer(rig.request(f"r{i}", prompt)) for i, prompt in enumerate(prompts)),
        return_exceptions=True,
    )

    refused = [each for each in found if isinstance(each, TooMany)]
    assert 1 <= len(refused) < len(prompts)
    assert {each.retry_after_s for each in refused} == {7.0}
    for prompt, each in zip(prompts, found, strict=True):
        assert each in refused or each == expected(prompt)
    await rig.await_stats("b0", lambda stats: not stats["used_blocks"])
    assert await rig.answer(rig.request("later", STORY)) == expected(STORY)


async def test_a_pool_full_of_blocks_that_nobody_fetches_gets_them_back(rig, expected):
    kept = {"grace_s": 0.1, "lease_ttl_s": 500.0}  # no lease ends by its time
    await rig.start("p0", engine={"num_kv_blocks": 64}, p2p=kept)
    await rig.start("d0")
    await rig.fleet.introduce("p0", "d0")
    rig.workers["d0"].stop()
    client = rig.fleet.clients["p0"]
    for number in range(3):
        hand_off = HandOff(rig.fleet, "p0", "d0")
        given = for_one_token(rig.request(f"given-{number}", [500 + number] * 320))
        await client.prefill(Order(given, hand_off.give()), 30.0)
    assert (await rig.stats("p0"))["pinned_blocks"] == 57
    rig.keep_on("p0")

    assert await rig.answer(rig.request("r", LONG, max_tokens=8)) == expected(LONG, max_tokens=8)

    assert (await rig.stats("p0"))["pinned_blocks"] < 57
    rig.workers["p0"].terminate()
    assert await rig.workers["p0"].wait() == 0


async def test_an_embedding_is_computed_where_it_is_asked_for(rig):
    await rig.start("p0", "d0")
    rig.keep_apart("p0", "d0")
    request = rig.request("r", STORY, embed=True, max_tokens=1)

    found = [
        delta.embedding
        async for deltas in rig.dispatcher.stream(request, Hints())
        for delta in deltas
    ]

    assert sum(each is not None for each in found) == 1
    assert rig.dispatcher.counters.handed_over == 0


async def test_a_client_that_leaves_while_its_prompt_is_handed_over_frees_both_workers(rig):
    await rig.start("p0", "d0", step_s=0.05)
    rig.keep_apart("p0", "d0")
    answer = asyncio.create_task(rig.answer(rig.request("r", LONG * 2)))
    await rig.await_stats("p0", lambda stats: stats["running"] == 1)

    answer.cancel()

    with pytest.raises(asyncio.CancelledError):
        await answer
    for name in ("p0", "d0"):
        await rig.await_stats(
            name, lambda stats: not (stats["used_blocks"] or stats["running"] or stats["leases"])
        )
