"""The engine beside an event loop: many coroutines, real model, real failures."""

import asyncio

import pytest

from stafette.workers import AsyncEngine, EngineConfig, SamplingParams
from stafette.workers.errors import EngineDead, RequestError
from stafette.workers.request import Request

FLAGS = {"max_num_seqs": 16, "max_model_len": 512, "num_kv_blocks": 256}


@pytest.fixture
async def engine():
    engine = await AsyncEngine.start(EngineConfig(**FLAGS))
    yield engine
    await engine.close()
    assert not engine.is_alive


def request(engine, name, prompt="The capital of France is", **params):
    tokens = engine.engine.tokenizer.encode(prompt)
    wanted = SamplingParams(**{"temperature": 0.0, "max_tokens": 8, **params})
    return Request(request_id=name, prompt_token_ids=tokens, params=wanted)


async def answer(engine, wanted):
    deltas = [delta async for delta in engine.generate(wanted)]
    return "".join(delta.text for delta in deltas), deltas[-1].finish_reason


async def idle(engine):
    """Wait until the engine has no work; return the blocks still held."""
    while await engine.call(lambda core: core.has_work):
        await asyncio.sleep(0.01)
    return engine.stats().scheduler.num_blocks_used


async def test_concurrent_requests_get_the_answers_they_get_alone(engine):
    prompts = [f"Count: {i}, {i + 1}," for i in range(12)]

    alone = [await answer(engine, request(engine, f"a{p}", p)) for p in prompts]
    together = await asyncio.gather(*(answer(engine, request(engine, f"b{p}", p)) for p in prompts))

    assert together == alone


async def test_a_wrong_request_costs_the_others_nothing(engine):
    good = [request(engine, f"good{i}", max_tokens=20) for i in range(4)]
    running = [asyncio.create_task(answer(engine, each)) for each in good]

    wrong = Request(request_id="bad", prompt_token_ids=[10**7], params=SamplingParams())
    with pytest.raises(RequestError, match="prompt_token_ids"):
        await answer(engine, wrong)

    answers = await asyncio.gather(*running)
    assert len(set(answers)) == 1


async def test_a_second_request_of_the_same_id_is_refused(engine):
    first = asyncio.create_task(answer(engine, request(engine, "same", max_tokens=30)))
    await asyncio.sleep(0)

    with pytest.raises(RequestError, match="request_id = 'same'"):
        await answer(engine, request(engine, "same"))

    assert (await first)[0]


async def test_cancelling_a_reader_frees_its_blocks(engine):
    long = request(engine, "long", max_tokens=400, ignore_eos=True)
    reader = asyncio.create_task(answer(engine, long))
    await asyncio.sleep(0.2)

    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader

    assert await idle(engine) == 0


async def test_an_abort_ends_the_stream_with_its_reason(engine):
    long = request(engine, "long", max_tokens=400, ignore_eos=True)
    reader = asyncio.create_task(answer(engine, long))
    await asyncio.sleep(0.2)

    await engine.abort("long")

    assert (await reader)[1] == "abort"
    assert await idle(engine) == 0


async def test_a_step_that_fails_ends_every_stream_and_refuses_new_ones(engine, caplog):
    readers = [
        asyncio.create_task(answer(engine, request(engine, f"r{i}", max_tokens=400)))
        for i in range(3)
    ]
    await asyncio.sleep(0.1)

    def broken(inputs):
        raise RuntimeError("the device is gone")

    engine.engine.executor.runner.forward = broken

    for reader in readers:
        with pytest.raises(EngineDead, match="the device is gone"):
            await reader
    with pytest.raises(EngineDead):
        await answer(engine, request(engine, "late"))


async def test_what_waits_when_the_engine_closes_is_told(engine):
    endless = request(engine, "long", max_tokens=480, ignore_eos=True)
    reader = asyncio.create_task(answer(engine, endless))
    while not await engine.call(lambda core: core.has_work):
        await asyncio.sleep(0)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0)
    calls = [asyncio.create_task(engine.call(lambda core: core.has_work)) for _ in range(3)]

    for waiting in (reader, *calls):
        with pytest.raises(EngineDead, match="closed"):
            await waiting
    await closing
    await engine.close()


async def test_a_request_is_queued_when_it_is_prepared_and_never_when_it_was_aborted(engine):
    prepared = []
    wanted = [request(engine, name) for name in ("served", "aborted")]
    readers = [
        asyncio.create_task(anext(engine.generate(each, prepared.append))) for each in wanted
    ]
    while len(prepared) < 2:
        await asyncio.sleep(0.01)
    assert not await engine.call(lambda core: core.has_work)

    readers[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await readers[1]
    for ready in prepared:
        engine.post(ready)

    assert (await readers[0]).request_id == "served"
    assert await engine.call(lambda core: core.is_waiting("aborted")) is None


@pytest.mark.parametrize("tokens", [[1, 2.5], [1, "two"], [None]])
async def test_tokens_that_are_no_numbers_are_refused(engine, tokens):
    wrong = Request(request_id="bad", prompt_token_ids=tokens, params=SamplingParams())

    with pytest.raises(RequestError, match="prompt_token_ids"):
        await answer(engine, wrong)

    assert (await answer(engine, request(engine, "good")))[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", 7),
        ("priority", "high"),
        ("priority", 10**400),
        ("cache_salt", 5),
        ("cache_salt", "\ud800"),
        ("lora", ["a"]),
        ("prompt_token_ids", "hello"),
        ("params", {"temperature": 0}),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_before_the_engine_sees_it(field, value):
    fields = {"request_id": "r", "prompt_token_ids": [1], "params": SamplingParams()}

    with pytest.raises(RequestError) as caught:
        Request(**{**fields, field: value})

    assert caught.value.field == field
