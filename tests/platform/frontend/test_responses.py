"""POST /v1/responses."""

from typing import get_args

import pytest
from openai.types.responses import Response, ResponseStreamEvent

EVENTS = {
    get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in get_args(get_args(ResponseStreamEvent)[0])
}
ADD = {
    "type": "function",
    "name": "add",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}


async def respond(api, **fields):
    fields.setdefault("input", "Hi")
    return await api.post("/v1/responses", **fields)


def outline(reply):
    """Return the types of a stream's events, each checked against OpenAI's own model."""
    events = reply.events()
    for event in events:
        EVENTS[event["type"]].model_validate(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return [event["type"].removeprefix("response.") for event in events]


async def test_an_answer_is_a_message(api):
    answer = (await respond(api, instructions="Be kind.")).json()

    Response.model_validate(answer)
    assert answer["status"] == "completed"
    (item,) = answer["output"]
    assert (item["type"], item["content"][0]["text"]) == ("message", "Hello world")
    assert answer["usage"]["output_tokens"] == 2
    assert answer["instructions"] == "Be kind."
    assert "Be kind." in api.generator.request.prompt


async def test_a_stream_tells_how_the_message_grows(api):
    reply = await respond(api, stream=True)

    assert outline(reply) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.get("delta") for event in reply.events()][4:6] == ["Hello", " world"]
    assert reply.events()[-1]["response"]["output"][0]["content"][0]["text"] == "Hello world"


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_text_and_calls_are_items_of_their_own(make_api, script, stream):
    api = make_api(reasoning_parser="deepseek_r1")
    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    api.generator.steps = script.say("Hm", "m.</think>Let me ", "add.", call)

    reply = await respond(api, tools=[ADD], stream=stream)

    if stream:
        assert outline(reply).count("output_item.done") == 3
        assert "function_call_arguments.done" in outline(reply)
        assert "reasoning_text.delta" in outline(reply)
    answer = reply.events()[-1]["response"] if stream else reply.json()
    thought, message, made = answer["output"]
    assert thought["content"][0]["text"] == "Hmm."
    assert message["content"][0]["text"] == "Let me add."
    assert (made["name"], made["arguments"]) == ("add", '{"a": 1}')
    assert made["call_id"].startswith("call_")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_reached_its_length_is_incomplete(api, script, stream):
    api.generator.steps = script.say("Hello", finish="length")

    reply = await respond(api, max_output_tokens=1, stream=stream)

    answer = reply.events()[-1]["response"] if stream else reply.json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_an_empty_answer_is_an_empty_message(api, script):
    api.generator.steps = script.say("")

    (item,) = (await respond(api)).json()["output"]

    assert item["content"][0]["text"] == ""


async def test_the_whole_conversation_comes_with_each_request(api):
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "1+1?"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": "2"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "It is 2."}]},
        {"role": "user", "content": "Sure?"},
    ]

    await respond(api, input=items)

    prompt = api.generator.request.prompt
    said = ["1+1?", '"name": "add"', "<tool_response>\n2", "It is 2.", "Sure?"]
    assert sorted(said, key=prompt.index) == said


async def test_log_probabilities_come_with_the_text(api, script, tokenizer):
    (token,) = tokenizer.encode("Hello")
    api.generator.steps = [
        [script.delta("Hello", logprobs=[script.score(token)], finish_reason="stop")]
    ]

    wanted = ["message.output_text.logprobs"]
    answer = (await respond(api, include=wanted, top_logprobs=1)).json()

    (entry,) = answer["output"][0]["content"][0]["logprobs"]
    assert (entry["token"], entry["logprob"]) == ("Hello", -0.5)


async def test_a_schema_binds_the_answer(api):
    wanted = {"type": "json_schema", "name": "x", "schema": {"type": "null"}}

    answer = (await respond(api, text={"format": wanted})).json()

    assert api.generator.request.params.structured.value == '{"type": "null"}'
    assert answer["text"]["format"]["schema"] == {"type": "null"}


async def test_a_stream_that_fails_says_so(api, script):
    api.generator.steps = [
        [script.delta("Hel")],
        [script.delta("", finish_reason="error", error="NaN")],
    ]

    reply = await respond(api, stream=True)

    assert outline(reply)[-1] == "failed"
    assert "NaN" in reply.events()[-1]["response"]["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"previous_response_id": "resp_1"}, 422, "previous_response_id"),
        ({"background": True}, 422, "background"),
        ({"conversation": "c"}, 422, "conversation"),
        ({"input": [{"type": "web_search_call"}]}, 400, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            422,
            "input[0].content[0].type",
        ),
        ({"top_logprobs": 2}, 400, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, 400, "tools[0].type"),
        ({"input": "word " * 600}, 400, "input"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(api, fields, status, param):
    reply = await respond(api, **fields)

    assert (reply.status, reply.error["param"]) == (status, param)
