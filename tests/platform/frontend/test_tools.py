"""Tools and formats in chat completions: what the model is told, bound to, and how it is read."""

import json

import pytest

from stafette.platform.frontend.plans import _begins_inside

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"$ref": "#/$defs/n"}},
            "required": ["a", "b"],
            "$defs": {"n": {"type": "integer"}},
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
SAID = [
    "Let me",
    " add.\n<tool",
    '_call>{"name": "add", "argum',
    'ents": {"a": 1',
    "}}</tool_call>",
]


def calls_of(events):
    """Put a stream's calls together, as clients do."""
    calls = {}
    for event in events:
        for choice in event["choices"]:
            for part in choice["delta"].get("tool_calls", ()):
                call = calls.setdefault(part["index"], {"arguments": ""})
                call.update({key: part[key] for key in ("id", "type") if key in part})
                if "name" in part["function"]:
                    call["name"] = part["function"]["name"]
                call["arguments"] += part["function"]["arguments"]
    return list(calls.values())


async def test_calls_are_read_out_of_the_text(api, script):
    api.generator.steps = script.say(*SAID)

    (choice,) = (await api.chat(tools=[ADD, NOW])).json()["choices"]

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me add."
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}


async def test_calls_are_streamed_and_no_markup_with_them(api, script):
    api.generator.steps = script.say(*SAID)

    reply = await api.chat(tools=[ADD], stream=True)

    assert "".join(reply.texts()) == "Let me add."
    (call,) = calls_of(reply.events())
    assert (call["name"], call["arguments"]) == ("add", '{"a": 1}')
    assert call["id"].startswith("call_")
    assert reply.events()[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_an_answer_without_a_call_ends_as_ever(api):
    (choice,) = (await api.chat(tools=[ADD])).json()["choices"]

    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "Hello world")
    assert "tool_calls" not in choice["message"]


async def test_a_call_that_was_cut_off_says_so(api, script):
    api.generator.steps = script.say(*SAID[:-1], finish="length")

    (choice,) = (await api.chat(tools=[ADD])).json()["choices"]

    assert choice["finish_reason"] == "length"


async def test_tools_are_explained_to_a_model_whose_template_knows_none(api):
    await api.chat(tools=[ADD])

    prompt = api.generator.request.prompt
    assert "Adds two numbers." in prompt
    assert "<tool_call>" in prompt


async def test_with_none_the_model_hears_of_no_tools(api):
    await api.chat(tools=[ADD], tool_choice="none")

    assert "add" not in api.generator.request.prompt


async def test_calls_and_results_of_before_are_told_again(api):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    await api.chat(
        messages=[
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
        ],
        tools=[ADD],
    )

    prompt = api.generator.request.prompt
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in prompt
    assert "<tool_response>\n2\n</tool_response>" in prompt


async def test_arguments_of_before_that_are_no_json_are_refused(api):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{oops"}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]

    reply = await api.chat(messages=messages)

    assert reply.error["param"] == "messages[0].tool_calls[0].function.arguments"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_required_call_binds_the_model_to_the_tools_schemas(api, script, stream):
    said = '[{"name": "add", "parameters": {"a": 1, "b": 2}}, {"name": "now", "parameters": {}}]'
    api.generator.steps = script.say(*said)

    reply = await api.chat(tools=[ADD, NOW], tool_choice="required", stream=stream)

    structured = api.generator.request.params.structured
    schema = json.loads(structured.value)
    assert structured.kind == "json_schema"
    names = [each["properties"]["name"]["const"] for each in schema["items"]["anyOf"]]
    assert names == ["add", "now"]
    assert schema["$defs"]["add"]["properties"]["a"] == {"$ref": "#/$defs/add/$defs/n"}
    if stream:
        calls = calls_of(reply.events())
        assert reply.texts() == []
    else:
        message = reply.json()["choices"][0]["message"]
        calls = [call["function"] for call in message["tool_calls"]]
        assert message["content"] is None
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [
        ("add", {"a": 1, "b": 2}),
        ("now", {}),
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_named_tool_binds_the_model_to_its_arguments(api, script, stream):
    api.generator.steps = script.say('{"a": 1,', ' "b": 2}')
    named = {"type": "function", "function": {"name": "add"}}

    reply = await api.chat(tools=[ADD, NOW], tool_choice=named, stream=stream)

    schema = json.loads(api.generator.request.params.structured.value)
    assert schema == ADD["function"]["parameters"]
    if stream:
        (call,) = calls_of(reply.events())
    else:
        call = reply.json()["choices"][0]["message"]["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("add", {"a": 1, "b": 2})


async def test_without_parallel_calls_one_is_asked_for_and_one_is_heard(api, script):
    one = '<tool_call>{"name": "now"}</tool_call>'
    api.generator.steps = script.say(one, one)

    read = await api.chat(tools=[NOW], parallel_tool_calls=False)
    await api.chat(tools=[NOW], parallel_tool_calls=False, tool_choice="required")

    assert len(read.json()["choices"][0]["message"]["tool_calls"]) == 1
    schema = json.loads(api.generator.requests[1].params.structured.value)
    assert schema["maxItems"] == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [ADD, ADD]}, "tools[1].function.name"),
        (
            {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "tool_choice.function.name",
        ),
        (
            {
                "tools": [ADD],
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "response_format",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ],
)
async def test_tools_that_make_no_sense_are_refused(api, fields, param):
    reply = await api.chat(**fields)

    assert (reply.status, reply.error["param"]) == (400, param)


async def test_without_a_parser_calls_have_to_be_forced(make_api):
    api = make_api(tool_parser="none")

    free = await api.chat(tools=[ADD])
    forced = await api.chat(tools=[ADD], tool_choice="required")

    assert (free.status, free.error["param"]) == (422, "tool_choice")
    assert forced.status == 200


async def test_a_form_with_special_tokens_gets_them_and_hides_the_end(make_api, script, tokenizer):
    api = make_api(tool_parser="mistral")
    end = tokenizer.eos_token_ids[0]
    shown_end = script.delta("<|im_end|>", token_ids=[end], finish_reason="stop")
    api.generator.steps = [[script.delta("Hello")], [shown_end]]

    reply = await api.chat(tools=[ADD])

    assert api.generator.request.params.skip_special_tokens is False
    assert reply.json()["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_is_told_apart_from_the_answer(make_api, script, stream):
    api = make_api(reasoning_parser="qwen3")
    api.generator.steps = script.say("<th", "ink>\nHm", "m.\n</thi", "nk>\n\nPa", "ris.")

    reply = await api.chat(stream=stream)

    if stream:
        deltas = [choice["delta"] for event in reply.events() for choice in event["choices"]]
        thought = "".join(part.get("reasoning_content", "") for part in deltas)
        answer = "".join(reply.texts())
    else:
        message = reply.json()["choices"][0]["message"]
        thought, answer = message["reasoning_content"], message["content"]
        details = reply.json()["usage"]["completion_tokens_details"]
        assert details["reasoning_tokens"] == 2  # those behind <think>, up to the end of it
    assert (thought, answer) == ("Hmm.", "Paris.")


@pytest.mark.parametrize(
    ("prompt", "form", "inside"),
    [
        ("…<think>\n", "qwen3", True),
        ("…assistant\n", "qwen3", False),
        ("…assistant\n", "deepseek_r1", True),
        ("…<think>\n\n</think>\n\n", "deepseek_r1", False),  # the template turned it off
    ],
)
def test_the_end_of_the_prompt_tells_whether_the_model_thinks_already(prompt, form, inside):
    assert _begins_inside(prompt, form) is inside


async def test_reasoning_and_calls_go_together(make_api, script):
    api = make_api(reasoning_parser="deepseek_r1")
    api.generator.steps = script.say("Hmm.</think>", '<tool_call>{"name": "now"}</tool_call>')

    message = (await api.chat(tools=[NOW])).json()["choices"][0]["message"]

    assert message["reasoning_content"] == "Hmm."
    assert message["content"] is None
    assert message["tool_calls"][0]["function"]["name"] == "now"


async def test_an_answer_of_a_given_form_has_no_thoughts(make_api, script):
    api = make_api(reasoning_parser="deepseek_r1")
    api.generator.steps = script.say('{"a": 1}')

    message = (await api.chat(response_format={"type": "json_object"})).json()["choices"][0][
        "message"
    ]

    assert message == {"role": "assistant", "content": '{"a": 1}'}


@pytest.mark.parametrize(
    ("fields", "kind", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "null"}},
                }
            },
            "json_schema",
            '{"type": "null"}',
        ),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "choice", '["yes", "no"]'),
        ({"structured_outputs": {"json": {"type": "null"}}}, "json_schema", '{"type": "null"}'),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "grammar", 'start: "a"'),
    ],
)
async def test_every_form_reaches_the_engine(api, fields, kind, value):
    await api.chat(**fields)

    structured = api.generator.request.params.structured
    assert (structured.kind, structured.value) == (kind, value)


async def test_plain_text_as_format_binds_nothing(api):
    await api.chat(response_format={"type": "text"})

    assert api.generator.request.params.structured is None
