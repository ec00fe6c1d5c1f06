"""A deadline ends a request wherever it is."""

import asyncio

import pytest


@pytest.mark.parametrize("stream", [False, True])
async def test_before_the_first_token_it_is_408(api, stream):
    api.generator.steps = [asyncio.Event()]

    reply = await api.chat(deadline=0.05, stream=stream)

    assert (reply.status, reply.error["code"]) == (408, "deadline_exceeded")
    assert reply.headers["x-should-retry"] == "false"
    assert len(api.generator.aborted) == 1


async def test_in_a_stream_the_answer_ends_where_it_is(api, script):
    api.generator.steps = [[script.delta("Hel")], asyncio.Event()]

    reply = await api.chat(deadline=0.5, stream=True, n=2, stream_options={"include_usage": True})

    assert reply.texts() == ["Hel"]
    *_, first, second, usage = reply.events()
    for event in (first, second):
        (choice,) = event["choices"]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("abort", "deadline")
    assert usage["usage"]["completion_tokens"] == 1


async def test_half_an_answer_is_not_returned_as_a_whole_one(api, script):
    api.generator.steps = [[script.delta("Hel")], asyncio.Event()]

    assert (await api.chat(deadline=0.05)).status == 408


async def test_the_server_has_one_for_requests_that_name_none(make_api):
    api = make_api(deadline_s=0.05)
    api.generator.steps = [asyncio.Event()]

    assert (await api.chat()).status == 408


async def test_an_answer_in_time_is_whole(api):
    assert (await api.chat(deadline=60)).status == 200


async def test_a_completion_and_a_response_end_too(api, script):
    api.generator.steps = [[script.delta("Hel")], asyncio.Event()]

    completion = await api.post("/v1/completions", prompt="x", deadline=0.05, stream=True)
    response = await api.post("/v1/responses", input="x", deadline=0.05, stream=True)

    assert completion.events()[-1]["choices"][0]["finish_reason"] == "abort"
    last = response.events()[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "deadline"}
