"""POST /tokenize and /detokenize."""

import pytest


async def test_a_text_becomes_tokens_and_tokens_become_the_text(api, tokenizer):
    there = (await api.post("/tokenize", prompt="Hello wörld", return_token_strs=True)).json()
    back = (await api.post("/detokenize", tokens=there["tokens"])).json()

    assert there["tokens"] == tokenizer.encode("Hello wörld")
    assert (there["count"], there["max_model_len"]) == (len(there["tokens"]), 512)
    assert there["token_strs"][0] == "Hello"
    assert back == {"prompt": "Hello wörld"}


async def test_a_conversation_becomes_the_tokens_of_its_prompt(api):
    messages = [{"role": "user", "content": "Hi"}]

    tokens = (await api.post("/tokenize", messages=messages)).json()["tokens"]
    await api.chat("Hi")

    assert tokens == api.generator.request.prompt_token_ids


@pytest.mark.parametrize(
    ("path", "fields", "status", "param"),
    [
        ("/tokenize", {}, 400, None),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, 400, None),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/detokenize", {"tokens": [10**6]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": "abc"}, 400, "tokens"),
    ],
)
async def test_what_cannot_be_done_is_refused(api, path, fields, status, param):
    reply = await api.post(path, **fields)

    assert (reply.status, reply.error["param"]) == (status, param)
