"""POST /v1/embeddings."""

import base64
from struct import pack, unpack

import pytest
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def vectors(api, script):
    """A generator whose vectors are (3, 4)."""
    made = script.delta(embedding=pack("<2f", 3.0, 4.0), finish_reason="length")
    api.generator.steps = [[made]]
    return api


async def embed(api, **fields):
    return await api.post("/v1/embeddings", **fields)


async def test_a_text_becomes_a_vector_of_length_one(vectors):
    answer = (await embed(vectors, input="Hello")).json()

    (entry,) = answer["data"]
    assert entry["embedding"] == pytest.approx([0.6, 0.8])
    assert answer["usage"] == {"prompt_tokens": 1, "total_tokens": 1}
    assert vectors.generator.request.params.embed


async def test_base64_holds_the_same_numbers(vectors):
    answer = (await embed(vectors, input="Hello", encoding_format="base64")).json()

    data = base64.b64decode(answer["data"][0]["embedding"])
    assert unpack("<2f", data) == pytest.approx((0.6, 0.8))


@pytest.mark.parametrize("given", [["a", "b", "c"], [[5], [6, 7], [8]]])
async def test_several_inputs_keep_their_order(vectors, given):
    answer = (await embed(vectors, input=given)).json()

    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    assert len(vectors.generator.requests) == 3


async def test_tokens_are_taken_as_they_are(vectors):
    await embed(vectors, input=[5, 6])

    assert vectors.generator.request.prompt_token_ids == [5, 6]


async def test_they_count_as_prompts_and_not_as_answers(vectors):
    await embed(vectors, input=[5, 6])

    text = (await vectors.get("/metrics")).body.decode()
    families = text_string_to_metric_families(text)
    counted = {one.name: one.value for family in families for one in family.samples}
    assert counted["vllm:prompt_tokens_total"] == 2
    assert counted["vllm:generation_tokens_total"] == 0


async def test_other_dimensions_than_the_models_are_refused(vectors):
    assert (await embed(vectors, input="a", dimensions=2)).status == 200

    reply = await embed(vectors, input="a", dimensions=3)

    assert (reply.status, reply.error["param"]) == (422, "dimensions")


async def test_a_vector_that_did_not_come_is_an_error(api):
    assert (await embed(api, input="a")).status == 500


@pytest.mark.parametrize("given", ["", [], [[]], ["a", ""], [1] * 512, "word " * 600])
async def test_an_input_that_cannot_be_embedded_is_named(api, given):
    reply = await embed(api, input=given)

    assert reply.status == 400
    assert reply.error["param"].startswith("input")
