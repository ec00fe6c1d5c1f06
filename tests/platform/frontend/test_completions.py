"""POST /v1/completions."""

import pytest


async def complete(api, **fields):
    fields.setdefault("prompt", "Once upon")
    return await api.post("/v1/completions", **fields)


async def test_a_text_is_continued(api):
    answer = (await complete(api)).json()

    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Hello world", "stop")
    assert api.generator.request.params.max_tokens == 16  # OpenAI's default
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 2


async def test_a_stream_brings_each_step(api, script):
    api.generator.steps = script.say("a", "", "b", stop_reason="END")

    reply = await complete(api, stream=True, stream_options={"include_usage": True})

    assert reply.texts() == ["a", "b"]
    *_, last, usage = reply.events()
    assert last["choices"][0]["stop_reason"] == "END"
    assert usage["usage"]["completion_tokens"] == 3


async def test_tokens_are_taken_as_they_are(api):
    await complete(api, prompt=[5, 6, 7])

    assert api.generator.request.prompt_token_ids == [5, 6, 7]


@pytest.mark.parametrize("prompts", [["one", "two"], [[5, 6], [7]]])
@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_have_their_answers_in_order(api, script, prompts, stream):
    both = [script.delta("a", 0), script.delta("b", 1, finish_reason="stop")]
    api.generator.steps = [both, [script.delta("c", 0, finish_reason="length")]]

    reply = await complete(api, prompt=prompts, n=2, stream=stream)

    events = reply.events() if stream else [reply.json()]
    said, ends = [""] * 4, [None] * 4
    for choice in (choice for event in events for choice in event["choices"]):
        said[choice["index"]] += choice["text"]
        ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
    assert said == ["ac", "b", "ac", "b"]
    assert ends == ["length", "stop", "length", "stop"]
    ids = [request.request_id for request in api.generator.requests]
    assert len(set(ids)) == 2


async def test_an_error_in_one_of_several_prompts_ends_the_others(api, script):
    api.generator.steps = [[script.delta("a")], RuntimeError("boom")]

    reply = await complete(api, prompt=["one", "two"])

    assert reply.status == 500
    assert api.generator.num_open == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_puts_the_prompt_in_front(api, stream):
    reply = await complete(api, echo=True, stream=stream)

    text = "".join(reply.texts()) if stream else reply.json()["choices"][0]["text"]
    assert text == "Once uponHello world"


async def test_an_echo_of_tokens_is_their_text(api, tokenizer):
    reply = await complete(api, prompt=tokenizer.encode("Once upon"), echo=True)

    assert reply.json()["choices"][0]["text"] == "Once uponHello world"


def scored(script, tokenizer, text):
    return [script.score(token, -1.0) for token in tokenizer.encode(text)]


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_say_where_each_token_is_in_the_text(
    api, script, tokenizer, stream
):
    api.generator.steps = [
        [script.delta("Hello", logprobs=scored(script, tokenizer, "Hello"))],
        [
            script.delta(
                " world", logprobs=scored(script, tokenizer, " world"), finish_reason="stop"
            )
        ],
    ]

    reply = await complete(api, logprobs=0, stream=stream)

    events = reply.events() if stream else [reply.json()]
    lists = [choice["logprobs"] for event in events for choice in event["choices"]]
    assert sum((each["tokens"] for each in lists), []) == ["Hello", " world"]
    assert sum((each["text_offset"] for each in lists), []) == [0, 5]
    assert sum((each["token_logprobs"] for each in lists), []) == [-1.0, -1.0]
    assert sum((each["top_logprobs"] for each in lists), []) == [{"Hello": -1.0}, {" world": -1.0}]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echoed_prompt_is_scored_from_its_second_token(api, script, tokenizer, stream):
    _, second = tokenizer.encode("Once upon")
    prompt_scores = [script.score(second, -3.0)]
    own = scored(script, tokenizer, "Hello")
    api.generator.steps = [
        [script.delta("Hello", 1, logprobs=own)],  # the second answer comes before the scores
        [script.delta("Hello", 0, logprobs=own, prompt_logprobs=prompt_scores)],
        [script.delta("", 0, token_ids=[], finish_reason="stop")],
        [script.delta("", 1, token_ids=[], finish_reason="stop")],
    ]

    reply = await complete(api, logprobs=0, echo=True, n=2, stream=stream)

    assert api.generator.request.params.prompt_logprobs == 0
    events = reply.events() if stream else [reply.json()]
    choices = [choice for event in events for choice in event["choices"]]
    for index in (0, 1):
        lists = [c["logprobs"] for c in choices if c["index"] == index and c["logprobs"]]
        assert sum((each["token_logprobs"] for each in lists), []) == [None, -3.0, -1.0]
        assert sum((each["text_offset"] for each in lists), []) == [0, 4, 9]


async def test_a_prompt_can_be_scored_alone(api, script, tokenizer):
    _, second = tokenizer.encode("Once upon")
    api.generator.steps = [
        [
            script.delta(
                "Hello",
                logprobs=scored(script, tokenizer, "Hello"),
                prompt_logprobs=[script.score(second, -3.0)],
                finish_reason="length",
            )
        ]
    ]

    answer = (await complete(api, max_tokens=0, echo=True, logprobs=0)).json()

    (choice,) = answer["choices"]
    assert choice["text"] == "Once upon"
    assert choice["logprobs"]["token_logprobs"] == [None, -3.0]
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"suffix": "the end"}, 422, "suffix"),
        ({"best_of": 2}, 400, "best_of"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [1, -1]}, 400, "prompt[1]"),
        ({"prompt": ["a"] * 65, "n": 2}, 400, "n"),
        ({"prompt": [1] * 512}, 400, "prompt"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(api, fields, status, param):
    reply = await complete(api, **fields)

    assert (reply.status, reply.error["param"]) == (status, param)


async def test_long_texts_are_tokenized_beside_the_event_loop(api, tokenizer, monkeypatch):
    import threading

    threads = []
    encode = type(tokenizer).encode

    def spying(self, *arguments):
        threads.append(threading.current_thread() is threading.main_thread())
        return encode(self, *arguments)

    monkeypatch.setattr(type(tokenizer), "encode", spying)

    await complete(api, prompt="short")
    await complete(api, prompt="long " * 10_000)

    assert threads == [True, False]
