"""A real engine passes the blocks of its prompts on: chunk by chunk, and only what is complete."""

import asyncio

import numpy as np
import pytest

BLOCK = 16
CHUNK = 64  # tokens of a step


def passed(shelf) -> list[tuple[int, int]]:
    """Return the places, first and end, of what was passed on."""
    return [(save.first, save.first + len(save.blocks)) for save in shelf.saves]


def content(shelf, save) -> np.ndarray:
    return shelf.pool[list(save.blocks)].copy()


async def test_a_prompt_is_passed_on_as_its_chunks_are_done(make, rig):
    handover, shelf = await make(by_hand=True)

    exported = await handover.prefill(rig.request("r", 200, max_tokens=1), {})

    assert passed(shelf) == [(0, 4), (4, 8), (8, 12)]
    assert exported.num_tokens == 192
    assert [save.parent for save in shelf.saves[1:]] == [
        save.hashes[-1] for save in shelf.saves[:-1]
    ]
    assert shelf.finished == [("r", "")]
    shelf.release()


async def test_what_is_cached_already_is_passed_on_before_anything_is_computed(make, rig):
    handover, shelf = await make(by_hand=True)
    await handover.prefill(rig.request("first", 200, max_tokens=1), {})
    first, shelf.saves = shelf.saves, []
    blocks_of = lambda saves: [block for save in saves for block in save.blocks]  # noqa: E731

    await handover.prefill(rig.request("second", 200, max_tokens=1), {})

    assert passed(shelf) == [(0, 12)]
    assert blocks_of(shelf.saves) == blocks_of(first)
    shelf.saves += first
    shelf.release()


async def test_blocks_that_are_passed_on_stay_as_they_are_until_they_are_let_go(make, rig):
    handover, shelf = await make(by_hand=True, num_kv_blocks=40)
    await handover.prefill(rig.request("r", 200, max_tokens=1), {})
    before = [content(shelf, save) for save in shelf.saves]

    for number in range(4):  # each would take most of the pool
        await handover.prefill(rig.request(f"other-{number}", 400, seed=number + 1), {})
        mine, shelf.saves = shelf.saves[:3], shelf.saves[3:]
        shelf.release()
        shelf.saves = mine

    assert all(map(np.array_equal, before, [content(shelf, save) for save in shelf.saves]))
    await handover.engine.call(lambda engine: None)  # by now, what was let go is back
    assert handover.exports.counters.num_pinned == 12
    shelf.release()


async def test_where_peers_hold_all_blocks_a_prompt_waits_until_they_let_go(make, rig):
    handover, shelf = await make(by_hand=True, num_kv_blocks=32)
    await handover.prefill(rig.request("r", 400, max_tokens=1), {})
    waiting = asyncio.create_task(handover.prefill(rig.request("other", 400, seed=1), {}))
    await asyncio.sleep(0.1)
    assert not waiting.done()

    shelf.release()

    assert (await waiting).num_tokens == 384
    shelf.release()


async def test_an_aborted_prompt_is_ended_at_the_connector_and_holds_nothing(make, rig):
    handover, shelf = await make(by_hand=True)
    forward = handover.engine.engine.executor.runner.forward
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(inputs):
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(20.0)
        return forward(inputs)

    handover.engine.engine.executor.runner.forward = slow
    running = asyncio.create_task(handover.prefill(rig.request("r", 200, max_tokens=1), {}))
    await asyncio.sleep(0.05)

    running.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running

    while not shelf.finished:
        await asyncio.sleep(0.01)
    assert shelf.finished == [("r", "the request was aborted")]
    shelf.release()


async def test_an_offer_passes_on_what_is_cached_and_computes_nothing(make, rig):
    handover, shelf = await make(by_hand=True)
    await handover.prefill(rig.request("r", 100, max_tokens=1), {})
    steps = handover.engine.stats().num_steps
    shelf.release()

    exported = await handover.offer(rig.request("longer", 200), {})

    assert exported.num_tokens == 96
    assert passed(shelf) == [(0, 6)]
    assert shelf.finished[-1] == ("longer", "the rest is not cached")
    assert handover.engine.stats().num_steps == steps
    shelf.release()


async def test_after_the_cache_was_reset_nothing_old_is_passed_on(make, rig):
    handover, shelf = await make(by_hand=True)
    await handover.prefill(rig.request("r", 100, max_tokens=1), {})
    shelf.release()

    await handover.engine.call(lambda engine: engine.reset_prefix_cache())
    exported = await handover.offer(rig.request("again", 100), {})

    assert exported.num_tokens == 0
    assert shelf.saves == []


async def test_a_prompt_shorter_than_a_block_is_passed_on_as_nothing(make, rig):
    handover, shelf = await make(by_hand=True)

    exported = await handover.prefill(rig.request("r", 9, max_tokens=1), {})

    assert exported.num_tokens == 0
    assert shelf.saves == []
    assert shelf.finished == [("r", "")]


async def test_closing_ends_what_is_being_passed_on(make, rig):
    handover, shelf = await make(by_hand=True)
    running = asyncio.create_task(handover.prefill(rig.request("r", 400, max_tokens=1), {}))
    while not shelf.saves:
        await asyncio.sleep(0.001)

    await handover.close()

    await running
    assert [name for name, _ in shelf.finished] == ["r"]
