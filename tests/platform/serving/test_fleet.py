"""A prompt in, the right text out, whatever dies in between: real engines in real processes."""

import asyncio

import pytest

from benchmarks.serving.nursery import TOKEN
from stafette.kvtransfer.errors import MalformedMessage
from stafette.platform.frontend.errors import Unavailable
from stafette.platform.frontend.generator import Hints
from stafette.platform.serving.step_news import StepNews
from stafette.workers import LLM, SamplingParams
from stafette.workers.errors import RequestError
from stafette.workers.service.config import ServiceConfig

STORY = "Once upon a time there was a relay team that ran through seven countries. "
LONG = STORY * 20  # some 300 tokens
PROMPTS = ["The capital of France is", STORY, LONG, LONG + "The end of the story is that"]


async def test_prefill_and_decode_apart_answer_what_one_engine_answers(rig, expected):
    await rig.start("p0", "d0")
    rig.keep_apart("p0", "d0")

    for number, prompt in enumerate(PROMPTS):
        assert await rig.answer(rig.request(f"r{number}", prompt)) == expected(prompt)

    moved = await rig.ask("d0", "stats")
    assert moved["pulled_tokens"] > 200
    assert sum(moved["moved_bytes"].values()) > 0
    assert rig.dispatcher.counters.handed_over == len(PROMPTS)
    assert rig.dispatcher.counters.handover_failures == 0


async def test_a_prompt_that_is_scored_is_computed_where_it_is_answered_and_scored_once(rig):
    await rig.start("p0", "d0", "d1", step_s=0.02)
    rig.keep_apart("p0", "d0")
    request = rig.request("r", STORY, prompt_logprobs=1, max_tokens=20)
    scores, tokens = [], []

    async for deltas in rig.dispatcher.stream(request, Hints()):
        scores += [each.prompt_logprobs for each in deltas if each.prompt_logprobs is not None]
        tokens += [token for each in deltas for token in each.token_ids]
        if len(tokens) == 5:
            rig.place_freely()
            rig.workers["d0"].kill()

    assert rig.dispatcher.counters.handed_over == 0
    assert rig.dispatcher.counters.moved == 1
    assert len(tokens) == 20
    assert [len(each) for each in scores] == [len(request.prompt_token_ids) - 1]


async def test_many_answers_at_once_over_several_workers_are_the_ones_of_one_engine(rig, expected):
    await rig.start("p0", "d0", "d1")
    prompts = [f"{STORY * (1 + i % 4)} Number {i} says:" for i in range(8)]

    found = await asyncio.gather(
        *(rig.answer(rig.request(f"r{i}", prompt)) for i, prompt in enumerate(prompts))
    )

    assert found == [expected(prompt) for prompt in prompts]


async def test_a_prompt_that_a_worker_was_told_to_compute_is_found_there(rig, expected):
    await rig.start("b0", "b1")
    tokens = rig.tokenizer.encode(STORY * 10)

    before = rig.events.counters("b1").delivered
    told = {"tokens": tokens, "lora": None, "cache_salt": None}
    cached = await rig.ask("b1", "preheat", told)

    assert cached == len(tokens) // 16 * 16
    await rig.await_that(lambda: rig.events.counters("b1").delivered > before)
    assert await rig.answer(rig.request("r", STORY * 10)) == expected(STORY * 10)
    # There, or pulled from there: as much as the events had told by then.
    assert 0 < rig.dispatcher.placement("r")["actual"]["cached_tokens"] <= cached
    for wrong in ({"tokens": tokens}, {"tokens": "abc", "lora": None, "cache_salt": None}, 3):
        with pytest.raises(RequestError):
            await rig.ask("b1", "preheat", wrong)


async def test_the_router_learns_how_fast_workers_are_from_each_step_once(rig):
    await rig.start("b0", step_s=0.05)
    learner = rig.router.fleet.learner("")
    reports, steps = learner.reports, (await rig.stats("b0"))["steps"]

    for number in range(2):
        await rig.answer(rig.request(f"r{number}", STORY * 2, max_tokens=20, ignore_eos=True))
    await rig.await_that(lambda: learner.performance.decode_step_ms(1, 60) > 40)  # prior: 6
    made = (await rig.stats("b0"))["steps"] - steps
    await asyncio.sleep(0.5)  # some beats more, which tell of nothing new

    assert reports < learner.reports + learner.rejected <= reports + made


@pytest.mark.parametrize("steps", [3, [0], [0, [[1.0, 2]]], [-1, []], [0, [["1", 2, 3, 4, 5]]]])
def test_steps_that_are_told_wrongly_are_malformed(steps):
    with pytest.raises(MalformedMessage):
        StepNews().of(1, {"steps": steps})


async def test_fifty_prompts_at_once_are_answered_token_for_token_in_fp32(rig):
    flags = {"runner": "torch", "dtype": "float32"}
    topics = ("rivers", "trains", "bread", "a lighthouse", "three brothers")
    prompts = [
        f"Story {i} is about {topics[i % 5]}. " + "And then they went on. " * (1 + 7 * i % 13)
        for i in range(50)
    ]
    wanted = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    llm = LLM(model="smollm2", max_model_len=1024, num_kv_blocks=512, num_threads=2, **flags)
    alone = [each.outputs[0].token_ids for each in llm.generate(prompts, wanted, use_tqdm=False)]
    llm.close()
    await rig.start("p0", "d0", engine=flags)
    rig.keep_apart("p0", "d0")

    async def tokens(number):
        request = rig.request(f"r{number}", prompts[number], max_tokens=8, ignore_eos=True)
        found = []
        async for deltas in rig.dispatcher.stream(request, Hints()):
            found += [token for each in deltas for token in each.token_ids]
        return found

    assert await asyncio.gather(*map(tokens, range(50))) == alone
    assert rig.dispatcher.counters.handed_over == 50
    assert rig.dispatcher.counters.handover_failures == 0


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 0.9, "seed": 11},
        {"temperature": 0.7, "seed": 3, "n": 2, "frequency_penalty": 0.5},
        {"temperature": 0.0, "stop": ("\n", "four")},
    ],
)
async def test_a_stream_goes_on_when_its_decode_worker_is_killed(rig, expected, params):
    params = {"max_tokens": 48} | params
    await rig.start("p0", "d0", "d1", step_s=0.02)
    killed = []

    def kill_at(count: int) -> None:
        if count >= 10 and not killed:
            rig.workers[rig.chosen()].kill()
            killed.append(count)

    found = await rig.answer(rig.request("r", STORY, **params), kill_at)

    assert found == expected(STORY, **params)
    assert killed or params.get("stop")


async def test_a_prompt_is_computed_elsewhere_when_its_prefill_worker_is_killed(rig, expected):
    await rig.start("p0", "d0", step_s=0.05)
    rig.keep_apart("p0", "d0")
    answer = asyncio.create_task(rig.answer(rig.request("r", LONG * 2, max_tokens=8)))
    before = await rig.stats("d0")
    await rig.await_stats("d0", lambda stats: stats["moved_bytes"] != before["moved_bytes"])

    rig.place_freely()
    rig.workers["p0"].kill()

    assert await answer == expected(LONG * 2, max_tokens=8)
    assert rig.dispatcher.counters.handover_failures == 1
    kept = (await rig.stats("d0"))["prefix_hits"] - before["prefix_hits"]
    assert kept >= 64, "the chunks that had come are not computed again"


async def test_a_worker_that_comes_back_is_used_again(rig, expected):
    await rig.start("b0")
    rig.workers["b0"].kill()
    await rig.workers["b0"].wait()
    await rig.await_that(lambda: not rig.fleet.clients)

    answer = asyncio.create_task(rig.answer(rig.request("r", STORY)))
    await rig.start("b0")

    assert await answer == expected(STORY)


async def test_without_a_worker_a_request_is_told_so_after_a_while(make_rig):
    rig = make_rig(wait_s=0.2)

    with pytest.raises(Unavailable, match="no worker is registered"):
        await rig.answer(rig.request("r", STORY))


async def test_a_wrong_request_is_refused_and_costs_the_others_nothing(rig, expected):
    await rig.start("b0")
    good = asyncio.create_task(rig.answer(rig.request("good", STORY)))

    with pytest.raises(RequestError, match="prompt"):
        await rig.answer(rig.request("long", [5] * 2_000))

    assert await good == expected(STORY)


async def test_a_role_is_told_at_once_and_what_is_under_way_goes_on(make_rig, expected):
    seldom = {"beat_s": 300.0, "silence_s": 900.0}  # so no beat tells it by chance
    rig = make_rig(service=ServiceConfig(token=TOKEN.encode(), **seldom))
    await rig.start("b0", "b1", step_s=0.01, service=seldom)
    answer = asyncio.create_task(rig.answer(rig.request("r", STORY, max_tokens=40)))
    await rig.await_that(lambda: rig.dispatcher.placement("r"))

    for name in ("b0", "b1"):
        assert await rig.ask(name, "set_role", "decode" if name == "b0" else "prefill") == "both"
    await rig.await_that(lambda: rig.router.fleet["b1"].spec.role == "prefill")

    assert await answer == expected(STORY, max_tokens=40)
    with pytest.raises(RequestError, match="role"):
        await rig.ask("b0", "set_role", "king")


async def test_leaving_a_stream_early_frees_its_worker(rig):
    await rig.start("p0", "d0", step_s=0.01)
    stream = rig.dispatcher.stream(rig.request("r", LONG, max_tokens=400), Hints())
    async for _ in stream:
        break
    await stream.aclose()

    await rig.await_that(lambda: all(not c.num_requests for c in rig.fleet.clients.values()))
    await rig.await_stats("d0", lambda stats: not stats["running"] and not stats["used_blocks"])
    assert not rig.router.sharing.own


async def test_the_router_hears_how_an_answer_grows_but_not_of_each_token(rig, monkeypatch):
    await rig.start("d0", step_s=0.01)
    told, progress = [], rig.router.progress

    def hear(name: str, count: int) -> None:
        told.append(count)
        progress(name, count)

    monkeypatch.setattr(rig.router, "progress", hear)
    await rig.answer(rig.request("r", STORY, max_tokens=40, ignore_eos=True))

    assert 1 <= len(told) <= 5
    assert told == sorted(told)
    assert told[-1] > 40 - 8
