"""A prompt's blocks come from elsewhere into a real engine: its answers never depend on it."""

import asyncio

import pytest

from stafette.kvtransfer.errors import TransferError
from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError, EngineDead, RequestError
from stafette.workers.handover import imports
from stafette.workers.handover.handover import check_config, kv_request
from stafette.workers.request import Request
from stafette.workers.sampling.params import SamplingParams

BLOCK = 16


@pytest.mark.parametrize("length", [5, 16, 17, 48, 200])
async def test_what_comes_from_elsewhere_is_found_like_any_prefix(make, rig, length):
    handover, shelf = await make()
    alone = await rig.learn(handover, shelf, length)

    found = await rig.answer(handover, rig.request("r", length))

    assert found == (alone, (length - 1) // BLOCK * BLOCK)
    assert await rig.idle(handover) == 0
    assert shelf.finished == [("r", "")]


async def test_only_what_the_pool_lacks_is_loaded(make, rig):
    handover, shelf = await make()
    alone = await rig.learn(handover, shelf, 200)
    await rig.answer(handover, rig.request("half", 100))
    shelf.loads.clear()

    assert await rig.answer(handover, rig.request("r", 200)) == (alone, 192)

    (load,) = shelf.loads
    assert (load.order.first, load.order.end) == (6, 12)


async def test_blocks_can_be_fetched_before_their_request_comes(make, rig):
    handover, shelf = await make()
    alone = await rig.learn(handover, shelf, 200)

    pulled = await handover.fetch(rig.request("before", 200), {})

    assert (pulled.num_held, pulled.num_pulled) == (0, 192)
    assert await rig.idle(handover) == 0
    shelf.blocks.clear()
    assert await rig.answer(handover, rig.request("r", 200)) == (alone, 192)


async def test_a_fetch_that_is_given_up_holds_nothing(make, rig):
    handover, shelf = await make(by_hand=True)
    await rig.learn(handover, shelf, 200)
    fetching = asyncio.create_task(handover.fetch(rig.request("r", 200), {}))
    load = await rig.loading(shelf)

    fetching.cancel()

    with pytest.raises(asyncio.CancelledError):
        await fetching
    while not load.ended:
        await asyncio.sleep(0.01)
    load.end_write()
    assert await rig.idle(handover) == 0


async def test_a_load_that_fails_in_the_middle_leaves_what_came_and_costs_the_rest(make, rig):
    handover, shelf = await make(by_hand=True)
    alone = await rig.learn(handover, shelf, 200)

    running = asyncio.create_task(rig.answer(handover, rig.request("r", 200)))
    load = await rig.loading(shelf)
    shelf.bring(load, 3)
    load.fail(TransferError("the peer is gone"))

    assert await running == (alone, 3 * BLOCK)
    assert handover.imports.counters.shortfalls == {"TransferError": 1}
    assert handover.engine.stats().scheduler.num_blocks_used == 9  # something may still write there
    load.end_write()
    assert await rig.idle(handover) == 0


async def test_an_abort_while_blocks_come_gives_them_back_when_nothing_writes_any_more(make, rig):
    handover, shelf = await make(by_hand=True)
    await rig.learn(handover, shelf, 200)
    running = asyncio.create_task(rig.answer(handover, rig.request("r", 200)))
    load = await rig.loading(shelf)
    shelf.bring(load, 5)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert await rig.idle(handover) == 7
    load.end_write()
    assert await rig.idle(handover) == 0
    shelf.blocks.clear()
    _, cached = await rig.answer(handover, rig.request("again", 200))
    assert cached == 5 * BLOCK  # what had come is not thrown away


async def test_an_abort_before_the_load_has_begun_takes_nothing(make, rig):
    handover, shelf = await make(by_hand=True)
    await rig.learn(handover, shelf, 100)
    steps_are_settled = []
    handover.engine.engine.when_settled = steps_are_settled.append
    running = asyncio.create_task(rig.answer(handover, rig.request("r", 100)))
    while not steps_are_settled:
        await asyncio.sleep(0.01)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await handover.engine.call(lambda engine: steps_are_settled[0]())

    assert shelf.loads == []
    assert await rig.idle(handover) == 0


async def test_a_load_begins_when_the_steps_that_were_on_their_way_are_settled(make, rig):
    handover, shelf = await make()
    alone = await rig.learn(handover, shelf, 200)
    engine = handover.engine.engine
    on_their_way, oldest = [], []

    def begin(load_request, num_held, real=shelf.matched_tokens):
        on_their_way.append([batch.step for batch, _ in engine._in_flight])
        return real(load_request, num_held)

    shelf.matched_tokens = begin
    shelf.on_start = lambda: oldest.append(min((b.step for b, _ in engine._in_flight), default=1e9))
    long = asyncio.create_task(rig.answer(handover, rig.request("long", 20, 9, max_tokens=200)))
    await asyncio.sleep(0.2)
    found = [await rig.answer(handover, rig.request(f"r{i}", 200)) for i in range(1)]
    long.cancel()

    assert found == [(alone, 192)]
    assert on_their_way[-1], "a step was on its way"
    assert oldest[0] > max(on_their_way[-1])


async def test_without_room_the_prompt_is_computed_here(make, rig):
    handover, shelf = await make(num_kv_blocks=36)
    alone = await rig.learn(handover, shelf, 300)
    long = asyncio.create_task(rig.answer(handover, rig.request("long", 320, 9, max_tokens=150)))
    while not handover.engine.stats().scheduler.num_running:
        await asyncio.sleep(0.01)

    found = await rig.answer(handover, rig.request("r", 300))
    await long

    assert found[0] == alone
    assert handover.imports.counters.shortfalls == {"NoRoom": 1}


async def test_blocks_that_come_after_the_cache_was_reset_are_not_used(make, rig):
    handover, shelf = await make(by_hand=True)
    alone = await rig.learn(handover, shelf, 100)
    running = asyncio.create_task(rig.answer(handover, rig.request("r", 100)))
    load = await rig.loading(shelf)

    await rig.reset(handover)
    shelf.bring(load, 6)
    load.end_write()

    assert await running == (alone, 0)
    assert handover.imports.counters.shortfalls == {"CacheReset": 1}


async def test_blocks_that_are_on_their_way_already_are_waited_for(make, rig):
    handover, shelf = await make(by_hand=True)
    alone = await rig.learn(handover, shelf, 100)
    running = [
        asyncio.create_task(rig.answer(handover, rig.request(f"r{i}", 100))) for i in range(3)
    ]
    load = await rig.loading(shelf)
    await asyncio.sleep(0.05)

    shelf.bring(load, 6)
    load.end_write()

    assert await asyncio.gather(*running) == [(alone, 96)] * 3
    assert len(shelf.loads) == 1


async def test_when_what_was_waited_for_does_not_come_it_is_loaded_again(make, rig):
    handover, shelf = await make(by_hand=True)
    alone = await rig.learn(handover, shelf, 100)
    running = [
        asyncio.create_task(rig.answer(handover, rig.request(f"r{i}", 100))) for i in range(2)
    ]
    load = await rig.loading(shelf)
    await asyncio.sleep(0.05)

    load.fail(TransferError("gone"))
    load.end_write()
    second = await rig.loading(shelf)
    shelf.bring(second, 6)
    second.end_write()

    answers = await asyncio.gather(*running)
    assert [tokens for tokens, _ in answers] == [alone, alone]
    assert len(shelf.loads) == 2


async def test_a_connector_that_does_not_know_yet_is_asked_again(make, rig):
    handover, shelf = await make()
    alone = await rig.learn(handover, shelf, 100)
    shelf.unknown = 3

    assert await rig.answer(handover, rig.request("r", 100)) == (alone, 96)


async def test_a_connector_that_never_knows_is_not_waited_for_for_ever(make, rig, monkeypatch):
    monkeypatch.setattr(imports, "_ASK_FOR_S", 0.05)
    handover, shelf = await make()
    alone = await rig.learn(handover, shelf, 40)
    shelf.unknown = 10**9

    assert await rig.answer(handover, rig.request("r", 40)) == (alone, 0)


async def test_pinned_blocks_give_way_when_nothing_can_run_without_them(make, rig):
    handover, shelf = await make(num_kv_blocks=32)
    await rig.learn(handover, shelf, 320)
    pulled = []

    def begin(engine):
        wanted = kv_request(engine, rig.request("never added", 320), {})
        handover.imports.begin(wanted, pulled.append)

    await handover.engine.call(begin)
    while not pulled:
        await asyncio.sleep(0.01)
    assert pulled[0].num_pulled == 304
    held = await rig.answer(handover, rig.request("large", 400, 5))

    assert len(held[0]) == 8
    assert await rig.idle(handover) == 0


async def test_answers_stay_the_same_when_what_was_brought_is_preempted(make, rig):
    handover, shelf = await make(max_model_len=128, num_kv_blocks=14)
    lengths = [50, 55, 60]
    alone = [await rig.learn(handover, shelf, n, seed=n, max_tokens=60) for n in lengths]

    wanted = [rig.request(f"r{n}", n, seed=n, max_tokens=60) for n in lengths]
    found = await asyncio.gather(*(rig.answer(handover, each) for each in wanted))

    assert [tokens for tokens, _ in found] == alone
    assert handover.engine.stats().scheduler.num_preemptions > 0
    assert handover.imports.counters.pulled_tokens > 0


async def test_a_prompt_whose_logprobs_are_wanted_is_computed_whole(make, rig):
    handover, shelf = await make()
    await rig.learn(handover, shelf, 100)

    _, cached = await rig.answer(handover, rig.request("r", 100, prompt_logprobs=1))

    assert cached == 0
    assert shelf.loads == []


async def test_wrong_requests_and_parameters_are_refused_before_anything_is_taken(make, rig):
    handover, shelf = await make()
    await rig.learn(handover, shelf, 100)
    wrong = Request(request_id="bad", prompt_token_ids=[10**7], params=SamplingParams())

    with pytest.raises(RequestError, match="prompt_token_ids"):
        await rig.answer(handover, wrong)
    with pytest.raises(RequestError, match="must be right"):
        await rig.answer(handover, rig.request("r", 100), {"shelf": "wrong"})

    assert shelf.loads == []


async def test_a_second_request_of_the_same_id_is_refused(make, rig):
    handover, shelf = await make(by_hand=True)
    alone = await rig.learn(handover, shelf, 100)
    first = asyncio.create_task(rig.answer(handover, rig.request("same", 100)))
    load = await rig.loading(shelf)

    with pytest.raises(RequestError, match="request_id = 'same'"):
        await rig.answer(handover, rig.request("same", 100))

    assert not load.ended
    shelf.bring(load, 6)
    load.end_write()
    assert await first == (alone, 96)


async def test_whoever_waits_for_blocks_is_told_when_the_engine_dies(make, rig, caplog):
    handover, shelf = await make(by_hand=True)
    await rig.learn(handover, shelf, 100)
    waiting = asyncio.create_task(rig.answer(handover, rig.request("r", 100)))
    await rig.loading(shelf)

    def broken(inputs):
        raise RuntimeError("the device is gone")

    handover.engine.engine.executor.runner.forward = broken
    with pytest.raises(EngineDead):
        await rig.answer(handover, rig.request("other", 20, 3))

    with pytest.raises(EngineDead, match="the device is gone"):
        await waiting


async def test_closing_ends_the_wait_for_blocks_and_the_engine_goes_on(make, rig):
    handover, shelf = await make(by_hand=True)
    alone = await rig.learn(handover, shelf, 100)
    waiting = asyncio.create_task(rig.answer(handover, rig.request("r", 100)))
    await rig.loading(shelf)

    await handover.close()

    assert await waiting == (alone, 0)
    assert await rig.idle(handover) == 0


@pytest.mark.parametrize(
    ("flag", "value"),
    [("share_kv_memory", False), ("enable_prefix_caching", False)],
)
def test_an_engine_that_cannot_hand_over_says_which_flag_to_change(rig, flag, value):
    with pytest.raises(ConfigError) as caught:
        check_config(EngineConfig(**rig.FLAGS | {flag: value}))

    assert caught.value.field == flag
