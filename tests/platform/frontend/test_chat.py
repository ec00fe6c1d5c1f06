"""POST /v1/chat/completions."""

import json

import pytest

from stafette.workers.errors import EngineDead, RequestError


async def test_an_answer_in_one_piece(api):
    reply = await api.chat(model="small")

    assert reply.status == 200
    answer = reply.json()
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "small")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello world"}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    prompt = len(api.generator.request.prompt_token_ids)
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, 2)
    assert usage["total_tokens"] == prompt + 2


async def test_a_stream_is_one_write_for_each_step_of_the_engine(api, script):
    api.generator.steps = script.say("Hel", "lo", " world")

    reply = await api.chat(stream=True)

    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.texts() == ["Hel", "lo", " world"]
    assert len(reply.writes) == 4  # three steps, the first with the role; then the end
    first, *_, last = reply.events()
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert len({event["id"] for event in reply.events()}) == 1


async def test_steps_that_came_together_are_sent_together(api, script):
    one, two = script.delta("a"), script.delta("b")
    api.generator.steps = [[one, two, script.delta("c", finish_reason="stop")]]

    reply = await api.chat(stream=True)

    assert "".join(reply.texts()) == "abc"
    assert len(reply.writes) == 2


async def test_half_a_character_is_never_sent_and_costs_no_chunk(api, script):
    api.generator.steps = script.say("", "", "😀\u2028", "é")

    reply = await api.chat(stream=True)

    assert reply.texts() == ["😀\u2028", "é"]
    assert len(reply.events()) == 3
    assert len(reply.body.decode().splitlines()) == reply.body.count(b"\n")  # for naive clients


async def test_usage_ends_a_stream_that_asks_for_it(api):
    reply = await api.chat(stream=True, stream_options={"include_usage": True})

    *chunks, last = reply.events()
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_several_answers_are_told_apart_by_their_index(api, script, stream):
    api.generator.steps = [
        [script.delta("a", 0), script.delta("x", 1)],
        [script.delta("y", 1, finish_reason="length")],
        [script.delta("b", 0, finish_reason="stop")],
    ]

    reply = await api.chat(n=2, stream=stream)

    assert api.generator.request.params.n == 2
    if not stream:
        choices = reply.json()["choices"]
        assert [choice["message"]["content"] for choice in choices] == ["ab", "xy"]
        assert [choice["finish_reason"] for choice in choices] == ["stop", "length"]
        return
    choices = [choice for event in reply.events() for choice in event["choices"]]
    said = {0: "", 1: ""}
    for choice in choices:
        said[choice["index"]] += choice["delta"].get("content", "")
    assert said == {0: "ab", 1: "xy"}
    assert {c["index"]: c["finish_reason"] for c in choices if c["finish_reason"]} == {
        0: "stop",
        1: "length",
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_of_every_token_arrive_with_its_text_and_bytes(
    api, script, tokenizer, stream
):
    first, second = tokenizer.encode("Hello"), tokenizer.encode(" world")
    other = tokenizer.encode("Hi")[0]
    scores = [script.score(first[0], -0.25, **{f"t{first[0]}": -0.25, f"t{other}": -2.0})]
    api.generator.steps = [
        [script.delta("", token_ids=first, logprobs=scores)],  # its text is withheld
        [script.delta("Hello", logprobs=[script.score(second[0], float("-inf"))])],
        [script.delta("", token_ids=[], finish_reason="stop")],
    ]

    reply = await api.chat(logprobs=True, top_logprobs=1, stream=stream)

    assert api.generator.request.params.logprobs == 1
    events = reply.events() if stream else [reply.json()]
    entries = [
        entry
        for event in events
        for choice in event["choices"]
        for entry in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert [entry["token"] for entry in entries] == ["Hello", " world"]
    assert entries[0]["bytes"] == list(b"Hello")
    assert [top["token"] for top in entries[0]["top_logprobs"]] == ["Hello"]
    assert entries[1]["logprob"] == -9999.0  # JSON has no infinity


async def test_the_fields_of_a_request_reach_the_engine(api):
    await api.chat(
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        seed=-1,
        stop=["a", "b"],
        stop_token_ids=[3],
        frequency_penalty=1,
        presence_penalty=-1,
        repetition_penalty=1.5,
        logit_bias={"5": -100},
        min_tokens=2,
        priority=-3,
        cache_salt="mine",
        session="s1",
        deadline=30,
        unknown_field={"is": "ignored"},
    )

    request, params = api.generator.request, api.generator.request.params
    assert (params.max_tokens, params.min_tokens) == (7, 2)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 5, 0.1)
    assert (params.seed, params.stop, params.stop_token_ids) == (-1, ("a", "b"), (3,))
    assert (params.frequency_penalty, params.presence_penalty) == (1, -1)
    assert (params.repetition_penalty, params.logit_bias) == (1.5, {5: -100.0})
    assert (request.priority, request.cache_salt) == (-3, "mine")
    (hints,) = api.generator.hints
    assert hints.session == "s1"
    assert 29 < hints.deadline_s <= 30


async def test_what_is_null_keeps_its_default(api):
    await api.chat(temperature=None, stop=None, n=None, seed=None, tools=None, stream=None)

    params = api.generator.request.params
    assert (params.temperature, params.n, params.stop) == (1.0, 1, ())
    assert params.max_tokens == 512  # as much as the model holds


async def test_the_models_chat_template_makes_the_prompt(api):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    await api.chat(
        messages=[{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts}]
    )

    assert api.generator.request.prompt == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


async def test_a_picture_is_understood_and_refused(api):
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}

    reply = await api.chat(messages=[{"role": "user", "content": [picture]}])

    assert reply.status == 422
    assert reply.error["param"] == "messages[0].content[0].type"


@pytest.mark.parametrize("field", ["functions", "function_call", "audio", "web_search_options"])
async def test_what_this_server_cannot_do_is_refused_by_name(api, field):
    reply = await api.chat(**{field: ["something"]})

    assert (reply.status, reply.error["param"]) == (422, field)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
        ({"stop": ["ok", ""]}, "stop[1]"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"deadline": 0}, "deadline"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ],
)
async def test_a_wrong_field_is_named_with_its_path(api, fields, param):
    reply = await api.chat(**fields)

    assert (reply.status, reply.error["param"]) == (400, param)
    assert reply.error["type"] == "invalid_request_error"
    assert api.generator.requests == []


async def test_a_body_that_is_no_json_says_where(api):
    reply = await api.post("/v1/chat/completions", body=b'{"messages": [')

    assert (reply.status, reply.error["code"]) == (400, "invalid_json")
    assert "column" in reply.error["message"]


async def test_a_prompt_that_is_too_long_names_both_lengths(api):
    reply = await api.chat("word " * 600)

    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert "512" in reply.error["message"]


@pytest.mark.parametrize("name", ["small", "alias"])
async def test_each_name_of_the_model_is_known(api, name):
    assert (await api.chat(model=name)).json()["model"] == name


async def test_an_unknown_model_is_not_found_and_the_known_are_listed(api):
    reply = await api.chat(model="gpt-5")

    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert "small" in reply.error["message"]


async def test_what_a_request_leaves_open_is_as_the_model_advises(make_api):
    api = make_api(advice={"temperature": 0.2, "top_p": 0.9})

    await api.chat()
    await api.chat(temperature=0, top_p=None)
    await api.post("/v1/completions", prompt="Hi", temperature=1)
    told = (await api.post("/v1/responses", input="Hi", top_p=0.5)).json()

    chosen = [(each.params.temperature, each.params.top_p) for each in api.generator.requests]
    assert chosen == [(0.2, 0.9), (0, 0.9), (1, 0.9), (0.2, 0.5)]
    assert (told["temperature"], told["top_p"]) == (0.2, 0.5)


async def test_an_adapter_is_named_as_the_model_or_beside_it(api, script):
    api.generator.state = type(api.generator.state)(loras=("tuned",))

    await api.chat(model="tuned")
    await api.chat(model="small", lora="tuned")
    missing = await api.chat(lora="other")
    both = await api.chat(model="tuned", lora="small")

    assert [request.lora for request in api.generator.requests] == ["tuned", "tuned"]
    assert (missing.status, missing.error["param"]) == (404, "lora")
    assert (both.status, both.error["param"]) == (400, "lora")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_placement_is_explained_on_demand(api, stream):
    api.generator.placed = {"decode": "worker-1", "margin": 0.5}

    asked = await api.chat(explain=True, stream=stream)
    silent = await api.chat(stream=stream)

    events = asked.events() if stream else [asked.json()]
    assert [event["placement"] for event in events if "placement" in event] == [
        {"decode": "worker-1", "margin": 0.5}
    ]
    assert b"placement" not in silent.body


async def test_without_a_choice_the_placement_is_null(api):
    assert (await api.chat(explain=True)).json()["placement"] is None


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_refuses_is_the_clients_error(api, stream):
    api.generator.steps = [RequestError("logprobs", 99, "must be at most 20")]

    reply = await api.chat(stream=stream)

    assert (reply.status, reply.error["param"]) == (400, "top_logprobs")


async def test_a_schema_that_the_engine_refuses_is_named_as_the_client_knows_it(api):
    api.generator.steps = [RequestError("structured.json_schema", "{}", "no text matches it")]
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}

    reply = await api.chat(response_format=wanted)

    assert (reply.status, reply.error["param"]) == (400, "response_format")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_dead_engine_is_503(api, stream):
    api.generator.steps = [EngineDead("engine", "boom", "restart")]

    reply = await api.chat(stream=stream)

    assert reply.status == 503
    assert int(reply.headers["retry-after"]) >= 1


async def test_an_engine_that_dies_meanwhile_ends_the_stream_with_an_error(api, script):
    api.generator.steps = [[script.delta("Hel")], EngineDead("engine", "boom", "restart")]

    reply = await api.chat(stream=True)

    assert reply.status == 200
    assert reply.events()[-1]["error"]["code"] == "unavailable"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_fails_in_the_engine_is_500(api, script, stream):
    api.generator.steps = [[script.delta(finish_reason="error", error="NaN in the logits")]]

    reply = await api.chat(stream=stream)

    assert reply.status == 500
    assert "NaN" in reply.error["message"]


async def test_an_answer_that_breaks_off_is_no_answer(api, script):
    api.generator.steps = [[script.delta("Hel")]]

    reply = await api.chat()

    assert reply.status == 500
    assert api.generator.aborted


async def test_a_bug_of_ours_is_500_and_logged(api, caplog):
    api.generator.steps = [ZeroDivisionError("oops")]

    reply = await api.chat()

    assert (reply.status, reply.error["type"]) == (500, "server_error")
    assert "oops" not in json.dumps(reply.error)
    assert "oops" in caplog.text
