"""Embeddings: the mean of a prompt's hidden states, whatever else the engine does meanwhile."""

import asyncio

import numpy as np
import pytest
import torch

from stafette.workers import LLM, AsyncEngine, EngineConfig, SamplingParams
from stafette.workers.request import Request

FLAGS = {"max_model_len": 512, "num_kv_blocks": 128, "max_num_seqs": 8}
PROMPT = list(range(1000, 1090))
EMBED = SamplingParams(max_tokens=1, temperature=0.0, embed=True)


async def embed(engine, name, prompt, params=EMBED):
    request = Request(request_id=name, prompt_token_ids=prompt, params=params)
    (vector,) = [
        np.frombuffer(delta.embedding, "<f4")
        async for delta in engine.generate(request)
        if delta.embedding is not None
    ]
    return vector


def alike(first, second):
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.fixture
async def engine():
    engine = await AsyncEngine.start(EngineConfig(max_num_batched_tokens=32, **FLAGS))
    yield engine
    assert engine.stats().scheduler.num_blocks_used == 0
    await engine.close()


async def test_it_is_the_mean_of_the_last_hidden_states(hf_smollm2):
    with torch.no_grad():
        states = hf_smollm2.model(torch.tensor([PROMPT])).last_hidden_state[0]
    exact = EngineConfig(runner="torch", dtype="float32", **FLAGS)
    engine = await AsyncEngine.start(exact)

    vector = await embed(engine, "e", PROMPT)
    await engine.close()

    np.testing.assert_allclose(vector, states.mean(0).numpy(), atol=2e-3)


async def test_chunks_make_the_same_vector_as_one_step(engine):
    whole = await AsyncEngine.start(EngineConfig(**FLAGS))
    expected = await embed(whole, "e", PROMPT)
    await whole.close()

    assert alike(await embed(engine, "e", PROMPT), expected) > 0.9999


async def test_a_cached_prefix_is_computed_again_for_it(engine):
    first = await embed(engine, "a", PROMPT)
    again = await embed(engine, "b", PROMPT)

    assert alike(first, again) > 0.9999


async def test_other_requests_in_the_batch_keep_their_answers_and_it_keeps_its_vector(engine):
    async def answer(name):
        params = SamplingParams(max_tokens=12, temperature=0.0)
        request = Request(request_id=name, prompt_token_ids=PROMPT[:20], params=params)
        return [token async for delta in engine.generate(request) for token in delta.token_ids]

    alone, vector = await answer("alone"), await embed(engine, "e", PROMPT)
    *answers, beside, longer = await asyncio.gather(
        *(answer(f"a{i}") for i in range(3)),
        embed(engine, "f", PROMPT),
        embed(engine, "g", PROMPT * 2),
    )

    assert answers == [alone] * 3
    assert alike(beside, vector) > 0.9999
    assert len(longer) == len(vector)


def test_an_answer_can_be_had_with_it():
    with LLM(**FLAGS) as llm:
        deltas = list(llm.stream(PROMPT, SamplingParams(max_tokens=4, embed=True)))

    assert sum(len(delta.token_ids) for delta in deltas) == 4
    assert [delta.embedding is not None for delta in deltas].count(True) == 1
