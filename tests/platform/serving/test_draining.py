"""A worker that is told to stop: its answers go on elsewhere, with their KV, and it ends empty."""

import asyncio
import json

import pytest

from stafette.platform.frontend.generator import Hints
from stafette.workers import StructuredOutput

STORY = "Once upon a time there was a relay team that ran through seven countries. "
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
WAYS = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 0.9, "seed": 11},
    "penalized": {"temperature": 0.8, "seed": 7, "frequency_penalty": 0.9, "n": 2},
    "structured": {
        "temperature": 0.7,
        "seed": 3,
        "structured": StructuredOutput(kind="json_schema", value=json.dumps(SCHEMA)),
    },
    "stop string": {"temperature": 0.0, "stop": ("zzz",), "min_tokens": 40},
}


class Once:
    """Calls something when so many tokens are there."""

    def __init__(self, count: int, call) -> None:
        self._count, self._call, self.called = count, call, False

    def __call__(self, count: int) -> None:
        if count >= self._count and not self.called:
            self.called = True
            self._call()


@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_goes_on_elsewhere_with_its_kv(rig, expected, way):
    params = {"max_tokens": 48} | WAYS[way]
    await rig.start("d0", "d1", step_s=0.02)
    before = {name: (await rig.ask(name, "stats"))["pulled_tokens"] for name in ("d0", "d1")}
    left = []
    terminate = Once(10, lambda: left.append(rig.workers[rig.chosen()]) or left[0].terminate())

    found = await rig.answer(rig.request("r", STORY * 5, **params), terminate)

    assert found == expected(STORY * 5, **params)
    assert await left[0].wait() == 0
    assert rig.dispatcher.counters.drained >= 1
    assert rig.dispatcher.counters.moved == 0
    (target,) = {"d0", "d1"} - {left[0].name}
    pulled = (await rig.ask(target, "stats"))["pulled_tokens"] - before[target]
    assert pulled >= 5 * 16 or params.get("n")  # of two answers, one may have been there before


async def test_logprobs_go_on_as_they_were(rig):
    await rig.start("d0", "d1", step_s=0.02)
    found = []
    drawn = {"logprobs": 3, "temperature": 0.8, "seed": 5}
    for name, count in (("calm", 10**6), ("r", 10)):
        terminate = Once(count, lambda: rig.workers[rig.chosen()].terminate())
        scores = []
        request = rig.request(name, STORY, max_tokens=40, ignore_eos=True, **drawn)
        async for deltas in rig.dispatcher.stream(request, Hints()):
            scores += [score for delta in deltas for score in delta.logprobs or ()]
            terminate(len(scores))
        found.append(scores)

    assert len(found[0]) == 40
    assert found[0] == found[1]
    assert rig.dispatcher.counters.drained == 1


async def test_many_answers_of_two_frontends_leave_one_worker(rig, make_rig, expected):
    await rig.start("d0", "d1", "d2", step_s=0.01)
    other = make_rig()
    await other.join(rig)
    prompts = [f"{STORY * (1 + i % 4)} Number {i} says:" for i in range(8)]
    for each in (rig, other):
        each.keep_on("d0")
    answers = asyncio.gather(
        *(
            (rig, other)[i % 2].answer((rig, other)[i % 2].request(f"r{i}", prompt, max_tokens=90))
            for i, prompt in enumerate(prompts)
        )
    )
    await rig.await_stats("d0", lambda stats: stats["running"] == len(prompts))
    for each in (rig, other):
        each.place_freely()

    await rig.ask("d0", "drain")

    rig.workers["d0"].harmed = True
    assert await answers == [expected(prompt, max_tokens=90) for prompt in prompts]
    assert await rig.workers["d0"].wait() == 0
    assert rig.dispatcher.counters.drained == other.dispatcher.counters.drained == 4
    assert rig.dispatcher.counters.moved == other.dispatcher.counters.moved == 0


async def test_what_waits_and_what_is_being_computed_goes_elsewhere(rig, expected):
    await rig.start("b0", step_s=0.1, engine={"max_num_seqs": 1})
    await rig.start("b1")
    rig.keep_on("b0")
    first = asyncio.create_task(rig.answer(rig.request("first", STORY * 20, max_tokens=8)))
    await rig.await_stats("b0", lambda stats: stats["running"] == 1)
    second = asyncio.create_task(rig.answer(rig.request("second", STORY, max_tokens=8)))
    await rig.await_stats("b0", lambda stats: stats["waiting"] == 1)
    rig.place_freely()

    rig.workers["b0"].terminate()

    assert await first == expected(STORY * 20, max_tokens=8)
    assert await second == expected(STORY, max_tokens=8)
    assert await rig.workers["b0"].wait() == 0
    assert rig.chosen("first") == rig.chosen("second") == "b1"


async def test_a_prompt_leaves_a_prefill_worker_that_is_told_to_stop(rig, expected):
    await rig.start("p0", "d0", step_s=0.05)
    rig.keep_apart("p0", "d0")
    answer = asyncio.create_task(rig.answer(rig.request("r", STORY * 40, max_tokens=8)))
    await rig.await_stats("p0", lambda stats: stats["running"] == 1)
    rig.place_freely()

    rig.workers["p0"].terminate()

    assert await answer == expected(STORY * 40, max_tokens=8)
    assert await rig.workers["p0"].wait() == 0
    assert rig.dispatcher.counters.moved == rig.dispatcher.counters.handover_failures == 0


async def test_a_prompt_goes_on_where_it_is_computed_when_its_decode_worker_is_told_to_stop(
    rig, expected
):
    await rig.start("p0", "d0", "d1", step_s=0.05)
    rig.keep_apart("p0", "d0")
    answer = asyncio.create_task(rig.answer(rig.request("r", STORY * 40, max_tokens=8)))
    await rig.await_stats("p0", lambda stats: stats["running"] == 1)
    rig.place_freely()
    rig.keep_apart("p0", "d1")

    rig.workers["d0"].terminate()

    assert await answer == expected(STORY * 40, max_tokens=8)
    assert await rig.workers["d0"].wait() == 0
    assert rig.chosen() == "d1"
    assert not (await rig.stats("p0"))["shortfalls"]


async def test_with_nowhere_to_go_an_answer_stays_until_it_is_over(rig, expected):
    await rig.start("b0", step_s=0.02)
    terminate = Once(10, rig.workers["b0"].terminate)

    found = await rig.answer(rig.request("r", STORY, max_tokens=40), terminate)

    assert found == expected(STORY, max_tokens=40)
    assert await rig.workers["b0"].wait() == 0
    assert rig.dispatcher.counters.drained == 0


async def test_an_answer_stays_where_it_is_when_its_new_worker_dies(rig, expected):
    await rig.start("d0", step_s=0.02, p2p={"grace_s": 0.1})
    await rig.start("d1", step_s=0.5)
    rig.keep_on("d0")
    answer = await rig.begin(rig.request("r", STORY * 10, max_tokens=60))
    rig.place_freely()
    rig.workers["d0"].terminate()
    await rig.await_that(lambda: rig.fleet.clients["d1"].num_requests)

    rig.workers["d1"].kill()

    assert await answer == expected(STORY * 10, max_tokens=60)
    assert await rig.workers["d0"].wait() == 0
    assert rig.dispatcher.counters.drained == 0
    assert rig.mover.counters.failed >= 1


async def test_an_answer_stays_where_it_is_when_its_new_worker_has_no_room(make_rig, expected):
    rig = make_rig(move_timeout_s=0.3)
    await rig.start("d1", step_s=0.05, engine={"num_kv_blocks": 64})
    filling = asyncio.create_task(
        rig.answer(rig.request("filling", [500] * 1_000, max_tokens=20, ignore_eos=True))
    )
    await rig.await_stats("d1", lambda stats: stats["running"] == 1)
    await rig.start("d0", step_s=0.02)
    answer = await rig.begin(rig.request("r", STORY * 10, max_tokens=60))

    rig.workers["d0"].terminate()

    assert await answer == expected(STORY * 10, max_tokens=60)
    assert await rig.workers["d0"].wait() == 0
    await filling


async def test_what_is_left_at_the_deadline_is_cut_off_and_goes_on_elsewhere(rig, expected):
    await rig.start("b0", step_s=0.05, drain={"deadline_s": 0.2})
    terminate = Once(5, rig.workers["b0"].terminate)
    answer = asyncio.create_task(rig.answer(rig.request("r", STORY, max_tokens=60), terminate))

    assert await rig.workers["b0"].wait() == 1
    await rig.start("b1")

    assert await answer == expected(STORY, max_tokens=60)
    assert rig.dispatcher.counters.moved == 1


async def test_draining_can_be_taken_back(rig, expected):
    await rig.start("b0", step_s=0.02)
    answer = asyncio.create_task(rig.answer(rig.request("r", STORY, max_tokens=40)))
    await rig.await_that(lambda: rig.dispatcher.placement("r"))

    await rig.ask("b0", "drain")
    await rig.await_that(lambda: rig.fleet.draining)
    await rig.ask("b0", "drain", False)
    await rig.await_that(lambda: not rig.fleet.draining)

    assert await answer == expected(STORY, max_tokens=40)
    assert await rig.answer(rig.request("next", STORY)) == expected(STORY)
