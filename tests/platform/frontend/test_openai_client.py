"""The real client, over a real socket, on a server process that runs the embedded model."""

import json
import math
import re
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import openai
import pytest
from safetensors.numpy import save_file

SMALL = ["--max-model-len", "1024", "--num-kv-blocks", "256", "--max-num-seqs", "8"]
START_S = 120.0
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "visit", "parameters": SCHEMA}}
HI = [{"role": "user", "content": "What is a relay race? Answer in one sentence."}]


def start(*arguments):
    """Start a server; return it with its URL."""
    command = [sys.executable, "-P", "-m", "stafette", "--log-level", "error", "serve", "--local"]
    process = subprocess.Popen(
        [*command, "--port", "0", *SMALL, *arguments], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if match := re.search(r"ready at (\S+);", line):
            return process, match[1]
    raise AssertionError(f"the server ended with {process.wait()}")


def stop(process):
    process.send_signal(signal.SIGTERM)
    status = process.wait(timeout=60)
    process.stdout.close()
    return status


@pytest.fixture(scope="module")
def url():
    process, url = start()
    yield url
    assert stop(process) == 0


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def metric(url, name):
    text = urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=30).read().decode()
    return float(re.search(rf"^{re.escape(name)}{{.*}} (.+)$", text, re.MULTILINE)[1])


def chat(client, **fields):
    fields = {"model": "smollm2", "messages": HI, "temperature": 0, "max_tokens": 24, **fields}
    return client.chat.completions.create(**fields)


def test_a_conversation_is_answered(client):
    answer = chat(client)

    assert answer.choices[0].message.content.startswith("A relay race is")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 24


def test_a_stream_says_the_same(client):
    whole = chat(client).choices[0].message.content

    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert len(chunks) > 20
    assert chunks[-1].usage.completion_tokens == 24


def test_several_answers_differ_and_a_seed_repeats_them(client):
    def both():
        answer = chat(client, n=2, temperature=1.0, seed=7)
        return [choice.message.content for choice in answer.choices]

    first = both()

    assert first[0] != first[1]
    assert both() == first


def test_a_stop_string_ends_the_answer_and_is_not_shown(client):
    (choice,) = chat(client, stop=[" race"]).choices

    assert (choice.message.content, choice.finish_reason) == ("A relay", "stop")


def test_log_probabilities_are_those_of_the_chosen_tokens(client):
    answer = chat(client, logprobs=True, top_logprobs=3, max_tokens=5)

    entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == answer.choices[0].message.content
    for entry in entries:  # greedy: the chosen token is the likeliest
        assert entry.token == entry.top_logprobs[0].token
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1.0001


def test_a_bias_forbids_a_token(client):
    first = chat(client, max_tokens=1).choices[0].message.content
    tokens = client.post("/../tokenize", cast_to=object, body={"prompt": first})["tokens"]

    other = chat(client, max_tokens=1, logit_bias={str(tokens[0]): -100})

    assert other.choices[0].message.content != first


def test_a_text_is_continued_and_echoed_with_its_scores(client):
    answer = client.completions.create(
        model="smollm2",
        prompt="The capital of France is",
        max_tokens=2,
        temperature=0,
        echo=True,
        logprobs=1,
    )

    (choice,) = answer.choices
    assert choice.text.startswith("The capital of France is Paris")
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    assert len(choice.logprobs.text_offset) == answer.usage.total_tokens


def test_completions_are_streamed(client):
    stream = client.completions.create(
        model="smollm2", prompt="1, 2, 3,", max_tokens=8, temperature=0, stream=True
    )

    assert "4" in "".join(chunk.choices[0].text for chunk in stream)


@pytest.mark.parametrize("stream", [False, True])
def test_a_required_call_obeys_the_tools_schema(client, stream):
    fields = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}

    answer = chat(client, **fields, max_tokens=100, stream=stream)

    if stream:
        parts = [call for c in answer for call in c.choices[0].delta.tool_calls or ()]
        name = parts[0].function.name
        arguments = "".join(part.function.arguments for part in parts)
    else:
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        name, arguments = call.function.name, call.function.arguments
    assert name == "visit"
    heard = json.loads(arguments)
    assert heard["city"] in ("Paris", "Rome")
    assert type(heard["big"]) is bool


def test_a_named_tool_is_called(client):
    named = {"type": "function", "function": {"name": "visit"}}

    answer = chat(client, tools=[TOOL], tool_choice=named, max_tokens=60)

    (call,) = answer.choices[0].message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"city", "big"}


def test_a_schema_binds_the_answer(client):
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}

    answer = chat(client, response_format=wanted, max_tokens=60)

    assert json.loads(answer.choices[0].message.content)["city"] in ("Paris", "Rome")


def test_a_schema_that_makes_no_sense_is_refused(client):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}

    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, response_format=wanted)

    assert refused.value.param == "response_format"


def test_responses_are_made_and_streamed(client):
    fields = {"model": "smollm2", "input": HI[0]["content"], "temperature": 0}

    cut = client.responses.create(**fields, max_output_tokens=12)
    with client.responses.stream(**fields) as stream:
        said = "".join(each.delta for each in stream if each.type == "response.output_text.delta")
        last = stream.get_final_response()

    assert (cut.status, last.status) == ("incomplete", "completed")
    assert cut.output_text.startswith("A relay race is")
    assert said == last.output_text
    assert last.output_text.startswith(cut.output_text)


def test_like_texts_have_like_vectors(client):
    texts = ["The cat sat on the mat.", "A cat is sitting on a mat.", "SELECT * FROM orders;"]

    answer = client.embeddings.create(model="smollm2", input=texts)

    first, second, other = (entry.embedding for entry in answer.data)

    def alike(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert alike(first, first) == pytest.approx(1.0, abs=1e-3)
    assert alike(first, second) > alike(first, other)
    assert len(first) == 576


def test_characters_of_several_tokens_are_never_split(client):
    tokens = client.post("/../tokenize", cast_to=object, body={"prompt": "🦜"})["tokens"]
    assert len(tokens) > 1

    stream = chat(client, stream=True, extra_body={"structured_outputs": {"choice": ["🦜🦜"]}})

    texts = [chunk.choices[0].delta.content for chunk in stream if chunk.choices[0].delta.content]
    assert texts == ["🦜", "🦜"]


def test_errors_are_the_clients_own_exceptions(client):
    with pytest.raises(openai.NotFoundError):
        chat(client, model="gpt-5")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chat(client, temperature=-1)
    with pytest.raises(openai.UnprocessableEntityError, match="suffix"):
        client.completions.create(model="smollm2", prompt="a", suffix="b")
    with pytest.raises(openai.BadRequestError, match="1024") as long:
        chat(client, messages=[{"role": "user", "content": "word " * 2000}])
    assert long.value.code == "context_length_exceeded"


def test_a_deadline_is_a_timeout(client):
    with pytest.raises(openai.APIStatusError) as late:
        chat(client, max_tokens=900, extra_body={"deadline": 0.2, "ignore_eos": True})

    assert late.value.status_code == 408


def test_a_client_that_leaves_stops_the_engine(client, url):
    before = metric(url, "vllm:generation_tokens_total")
    stream = chat(client, stream=True, max_tokens=900, extra_body={"ignore_eos": True})
    next(iter(stream))

    stream.close()

    deadline = time.monotonic() + 20
    while metric(url, "vllm:num_requests_running"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert metric(url, "vllm:generation_tokens_total") - before < 500
    assert metric(url, "vllm:kv_cache_usage_perc") == 0


def test_models_are_listed(client):
    (model,) = client.models.list().data

    assert client.models.retrieve("smollm2").id == model.id == "smollm2"


def save_adapter(folder):
    """Write an adapter that changes every layer's queries beyond recognition."""
    numbers = np.random.default_rng(0)
    tensors = {}
    for layer in range(30):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        for part, shape in (("lora_A", (4, 576)), ("lora_B", (576, 4))):
            tensors[f"{name}.{part}.weight"] = numbers.normal(size=shape).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 64, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_an_adapter_is_a_model_of_its_own(tmp_path):
    save_adapter(tmp_path)
    process, url = start("--lora", f"tuned={tmp_path}")
    try:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            names = {model.id: model.parent for model in client.models.list().data}
            base, tuned = (
                chat(client, model=name, max_tokens=8).choices[0].message.content
                for name in ("smollm2", "tuned")
            )
            beside = chat(client, max_tokens=8, extra_body={"lora": "tuned"})
    finally:
        assert stop(process) == 0

    assert names == {"smollm2": None, "tuned": "smollm2"}
    assert base != tuned
    assert beside.choices[0].message.content == tuned
