"""An answer that was begun elsewhere goes on as if nothing had happened."""

import json

import pytest
import pytest_asyncio

from stafette.workers import AsyncEngine, EngineConfig, SamplingParams, StructuredOutput
from stafette.workers.errors import RequestError
from stafette.workers.request import Request

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
WAYS = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 1.0, "seed": 7},
    "penalized": {"temperature": 0.8, "seed": 7, "frequency_penalty": 0.9, "top_p": 0.9},
    "repetition": {"temperature": 0.0, "repetition_penalty": 1.3},
    "structured": {
        "temperature": 0.7,
        "seed": 3,
        "structured": StructuredOutput(kind="json_schema", value=json.dumps(SCHEMA)),
    },
    "least": {"temperature": 0.0, "min_tokens": 30},
}
FLAGS = {"max_num_seqs": 8, "max_model_len": 512, "num_kv_blocks": 128}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    engine = await AsyncEngine.start(EngineConfig(**FLAGS))
    yield engine
    await engine.close()


def begin(engine, name: str, output=(), **params) -> Request:
    prompt = engine.engine.tokenizer.encode("A person, as JSON:")
    wanted = SamplingParams(**({"max_tokens": 40} | params))
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        output_token_ids=list(output),
        params=wanted,
    )


async def answer(engine, request: Request):
    deltas = [delta async for delta in engine.generate(request)]
    tokens = [token for delta in deltas for token in delta.token_ids]
    return tokens, "".join(delta.text for delta in deltas), deltas[-1].finish_reason


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.asyncio(loop_scope="module")
async def test_the_rest_of_an_answer_is_the_same_wherever_it_is_computed(engine, way):
    whole, text, reason = await answer(engine, begin(engine, f"{way}-whole", **WAYS[way]))

    for cut in (1, len(whole) // 2, len(whole) - 1):
        resumed = begin(engine, f"{way}-{cut}", whole[:cut], **WAYS[way])
        rest, rest_text, rest_reason = await answer(engine, resumed)

        assert whole[:cut] + rest == whole
        assert rest_reason == reason
        assert text.endswith(rest_text)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_cannot_be_gone_on_with_is_named(engine):
    with pytest.raises(RequestError, match="the answer is over"):
        begin(engine, "over", [1] * 40)
    with pytest.raises(RequestError, match="n = 2"):
        begin(engine, "many", [1], n=2)
    with pytest.raises(RequestError, match="prompt_token_ids"):
        await answer(engine, begin(engine, "foreign", [10**7]))
