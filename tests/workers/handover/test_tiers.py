"""A real engine whose blocks go to tiers below its pool, and come back when they are wanted."""

import asyncio

import pytest

from stafette.kvtransfer.connectors.tiered import TieredConfig, TieredConnector
from stafette.kvtransfer.tiers.config import HostConfig, TiersConfig

PATIENCE_S = 20.0


@pytest.fixture
async def handover(make):
    """An engine whose pool is small, and whose host tier is not."""
    tiers = TiersConfig(host=HostConfig(num_blocks=512), save_on_close=False)
    handover, _ = await make(TieredConnector(TieredConfig(tiers=tiers)), num_kv_blocks=32)
    return handover


async def saved(handover) -> None:
    assert await asyncio.to_thread(handover.connector.wait_saved, PATIENCE_S)


async def test_what_the_pool_has_evicted_comes_back_from_the_host(handover, rig):
    alone, cached = await rig.answer(handover, rig.request("first", 200))
    await saved(handover)
    for number in range(1, 4):  # each of them needs most of the pool
        await rig.answer(handover, rig.request(f"other-{number}", 400, seed=number))
    await saved(handover)

    again = await rig.answer(handover, rig.request("again", 200))

    assert cached == 0
    assert again == (alone, 192)
    assert handover.imports.counters.pulled_tokens > 0


async def test_tiers_are_told_what_the_engine_s_steps_take_for_prompts(handover, rig):
    told = []
    handover.connector.paying.note_step = lambda *step: told.append(step)

    await rig.answer(handover, rig.request("first", 200, max_tokens=20))

    assert sum(tokens for tokens, _, _ in told) == 200  # and nothing of the steps that decode
    assert all(seconds > 0 and waiting == 0 for _, seconds, waiting in told)


async def test_answers_are_kept_too_so_that_a_conversation_goes_on_from_them(handover, rig):
    first = rig.request("first", 100, max_tokens=60)
    tokens, _ = await rig.answer(handover, first)
    await saved(handover)
    for number in range(1, 4):
        await rig.answer(handover, rig.request(f"other-{number}", 400, seed=number))

    longer = [*first.prompt_token_ids, *tokens, 7, 8, 9]
    found = await rig.answer(handover, rig.request_of("longer", longer))

    assert found[1] == 144  # 159 tokens of the first prompt and its answer were computed


async def test_other_weights_never_meet_old_blocks(handover, rig):
    await rig.answer(handover, rig.request("first", 200))
    await saved(handover)

    await handover.engine.call(lambda engine: engine.reset_prefix_cache())
    _, cached = await rig.answer(handover, rig.request("again", 200))

    assert cached == 0


async def test_the_workers_events_tell_of_the_host_too(handover, rig):
    batches = []
    handover.engine.engine.on_kv_events = batches.append

    await rig.answer(handover, rig.request("first", 200))
    await saved(handover)
    await handover.engine.call(lambda engine: engine.tell_kv_events())

    tiers = {event.tier for batch in batches for event in batch.events}
    assert tiers == {"device", "host"}
