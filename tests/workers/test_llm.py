"""The engine as scripts see it: the embedded model, whole, through `LLM`."""

import json
from itertools import count

import pytest
import torch

from stafette.kvtransfer.event_log import CachedBlocks
from stafette.workers import LLM, SamplingParams, StructuredOutput
from stafette.workers.errors import ConfigError, RequestError

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
PROMPTS = ["The capital of France is", "One, two, three,", "def add(a, b):\n    return"]


def texts(outputs):
    return [output.outputs[0].text for output in outputs]


def tokens(outputs):
    return [output.outputs[0].token_ids for output in outputs]


def used_blocks(llm):
    return llm.engine.stats().scheduler.num_blocks_used


def test_the_embedded_model_answers_a_question(llm):
    question = [{"role": "user", "content": "What is a relay race? Answer in one sentence."}]

    answer = llm.chat(question, SamplingParams(temperature=0.0, max_tokens=64)).outputs[0]

    assert answer.text.startswith("A relay race is a")
    assert answer.finish_reason == "stop"


def test_a_text_is_continued(llm):
    assert " Paris" in texts(llm.generate(PROMPTS[0], GREEDY, use_tqdm=False))[0]


def test_outputs_come_in_the_order_of_the_prompts(llm):
    together = llm.generate(PROMPTS, GREEDY, use_tqdm=False)

    assert [output.prompt for output in together] == PROMPTS
    assert texts(together) == [
        llm.generate(prompt, GREEDY, use_tqdm=False)[0].outputs[0].text for prompt in PROMPTS
    ]


def test_token_ids_and_text_are_the_same_prompt(llm):
    as_tokens = llm.tokenizer.encode(PROMPTS[0])

    assert tokens(llm.generate(as_tokens, GREEDY)) == tokens(llm.generate(PROMPTS[0], GREEDY))


def test_streamed_pieces_add_up_to_the_whole_answer(llm):
    pieces = [delta.text for delta in llm.stream(PROMPTS[0], GREEDY)]

    assert len(pieces) > 1
    assert "".join(pieces) == texts(llm.generate(PROMPTS[0], GREEDY))[0]


def test_leaving_a_stream_early_frees_its_blocks(llm):
    for _ in llm.stream(PROMPTS[0], SamplingParams(max_tokens=500, ignore_eos=True)):
        break

    llm.generate("go on", GREEDY, use_tqdm=False)
    assert used_blocks(llm) == 0


def test_a_seeded_request_gives_the_same_tokens_whatever_shares_its_batch(llm):
    seeded = SamplingParams(temperature=1.0, seed=7, max_tokens=12)
    others = [SamplingParams(temperature=1.0, max_tokens=5 + i) for i in range(5)]

    alone = llm.generate(PROMPTS[0], seeded, use_tqdm=False)
    crowd = llm.generate([PROMPTS[0]] + [PROMPTS[1]] * 5, [seeded, *others], use_tqdm=False)

    assert tokens(crowd)[0] == tokens(alone)[0]


def test_n_answers_differ_and_are_numbered(llm):
    params = SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=16)

    answers = llm.generate("Once upon a time", params, use_tqdm=False)[0].outputs

    assert [answer.index for answer in answers] == [0, 1, 2]
    assert len({answer.text for answer in answers}) == 3


def test_a_stop_string_ends_the_answer_before_it(llm):
    params = SamplingParams(temperature=0.0, max_tokens=50, stop=(" five",))

    answer = llm.generate("one, two, three, four,", params, use_tqdm=False)[0].outputs[0]

    assert " five" not in answer.text
    assert (answer.finish_reason, answer.stop_reason) == ("stop", " five")
    assert used_blocks(llm) == 0


def test_a_stop_string_counts_only_after_min_tokens(llm):
    params = SamplingParams(temperature=0.0, max_tokens=12, min_tokens=8, stop=(" five", ",", "."))

    answer = llm.generate("one, two, three, four,", params, use_tqdm=False)[0].outputs[0]

    assert answer.text.startswith(" five, six")
    assert len(answer.token_ids) > 8
    assert answer.stop_reason in (",", ".")  # what comes there depends on the CPU's instructions


def test_max_tokens_and_ignore_eos_give_exactly_that_many_tokens(llm):
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=40, ignore_eos=True)

    outputs = llm.generate(PROMPTS, params, use_tqdm=False)

    assert [len(ids) for ids in tokens(outputs)] == [40, 40, 40]
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}


def test_logprobs_are_those_of_the_logits(llm):
    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=2, prompt_logprobs=1)

    output = llm.generate(PROMPTS[0], params, use_tqdm=False)[0]

    expected = torch.log_softmax(llm.logits(output.prompt_token_ids), dim=-1)
    first = output.outputs[0].logprobs[0]
    assert first.rank == 1
    assert first.logprob == pytest.approx(expected[-1].max().item(), abs=1e-4)
    assert set(first.top) == set(expected[-1].topk(2).indices.tolist())
    told = [item.logprob for item in output.prompt_logprobs]
    wanted = [expected[i, token].item() for i, token in enumerate(output.prompt_token_ids[1:])]
    assert told == pytest.approx(wanted, abs=1e-4)


def test_a_json_schema_holds_beside_free_requests(llm):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    structured = StructuredOutput(kind="json_schema", value=json.dumps(schema))
    bound = SamplingParams(temperature=0.0, max_tokens=80, structured=structured)

    outputs = llm.generate(["Describe Ann, who is 31:", PROMPTS[1]], [bound, GREEDY])

    person = json.loads(outputs[0].outputs[0].text)
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)
    assert texts(outputs)[1] == texts(llm.generate(PROMPTS[1], GREEDY))[0]


def test_a_prefix_hit_changes_no_token(llm):
    long_prompt = "The history of the relay race, told at length. " * 8
    llm.engine.reset_prefix_cache()

    cold = llm.generate(long_prompt, GREEDY, use_tqdm=False)[0]
    warm = llm.generate(long_prompt, GREEDY, use_tqdm=False)[0]

    assert cold.num_cached_tokens == 0
    assert warm.num_cached_tokens >= len(warm.prompt_token_ids) // 16 * 16 - 16
    assert tokens([warm]) == tokens([cold])


def test_cache_salts_keep_prefixes_apart(llm):
    prompt = "A secret that two tenants happen to share, word by word, to the end of it." * 2
    first, second = (
        llm.generate({"prompt": prompt, "cache_salt": salt}, GREEDY, use_tqdm=False)[0]
        for salt in ("tenant-a", "tenant-b")
    )

    assert first.num_cached_tokens == second.num_cached_tokens == 0
    assert tokens([first]) == tokens([second])


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_a_tiny_pool_preempts_and_still_gives_the_same_answers(llm, async_scheduling):
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    prompts = [f"{prompt} {i}" for i, prompt in enumerate(PROMPTS * 2)]

    with LLM(
        num_kv_blocks=9, max_model_len=128, max_num_seqs=8, async_scheduling=async_scheduling
    ) as small:
        squeezed = small.generate(prompts, params, use_tqdm=False)
        stats = small.engine.stats().scheduler

    assert stats.num_preemptions > 0
    assert tokens(squeezed) == tokens(llm.generate(prompts, params, use_tqdm=False))


@pytest.mark.parametrize(
    "flags",
    [
        {"enable_chunked_prefill": False},
        {"max_num_batched_tokens": 16, "max_num_seqs": 4},
        {"enable_prefix_caching": False},
        {"continuous_batching": False},
        {"preallocate_kv": True},
        {"speculative_tokens": 4, "async_scheduling": False},
        {"num_threads": 1},
    ],
    ids=lambda flags: ",".join(flags),
)
def test_no_flag_changes_a_greedy_answer(llm, flags):
    sizes = {"max_num_seqs": 8, "max_model_len": 512, "num_kv_blocks": 256}
    prompts = [*PROMPTS, "la la la la la la la la la la"]

    with LLM(**{**sizes, **flags}) as other:
        answers = tokens(other.generate(prompts, GREEDY, use_tqdm=False))

    assert answers == tokens(llm.generate(prompts, GREEDY, use_tqdm=False))


def test_stats_count_steps_tokens_and_hits(llm):
    before = llm.engine.stats()

    llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)

    after = llm.engine.stats()
    assert after.num_steps > before.num_steps
    assert after.num_tokens >= before.num_tokens + 12
    assert after.busy_seconds > before.busy_seconds
    assert after.scheduler.kv_cache_usage == 0


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ("", "prompt"),
        ([], "prompt"),
        ([1, 2, 10**6], "prompt_token_ids"),
        ([5, -1], "prompt_token_ids"),
        ([1] * 1024, "prompt"),
        ({"text": "hello"}, "prompt"),
    ],
)
def test_a_wrong_prompt_is_named_and_nothing_is_queued(llm, prompt, field):
    with pytest.raises(RequestError) as caught:
        llm.generate([PROMPTS[0], prompt], GREEDY, use_tqdm=False)

    assert caught.value.field == field
    assert not llm.engine.has_work


def test_an_impossible_schema_is_refused_before_anything_runs(llm):
    params = SamplingParams(structured=StructuredOutput(kind="regex", value="(unclosed"))

    with pytest.raises(RequestError, match="structured"):
        llm.generate(PROMPTS[0], params, use_tqdm=False)


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"model": "no/such/model"}, "model"),
        ({"max_model_len": 10**6}, "max_model_len"),
        ({"num_kv_blocks": 1}, "num_kv_blocks"),
        ({"num_kv_blocks": 10**9}, "num_kv_blocks"),
        ({"quantization": "awq"}, "quantization"),
        ({"runner": "torch", "attention_backend": "fastest"}, "attention_backend"),
        ({"runner": "native", "tensor_parallel_size": 2}, "tensor_parallel_size"),
    ],
)
def test_a_flag_that_cannot_work_is_named_at_the_start(flags, field):
    with pytest.raises((ConfigError, ValueError, MemoryError)) as caught:
        LLM(**flags)

    assert caught.value.field == field


@pytest.mark.parametrize("broken_step", [0, 1, 5])
@pytest.mark.parametrize("async_scheduling", [True, False])
def test_logits_that_are_no_numbers_end_their_own_sequence_only(llm, broken_step, async_scheduling):
    flags = {"max_num_seqs": 4, "max_model_len": 256, "num_kv_blocks": 64}
    with LLM(**flags, async_scheduling=async_scheduling) as other:
        forward, steps = other.engine.executor.runner.forward, count()

        def poisoned(inputs):
            tensors = forward(inputs)
            if next(steps) == broken_step:
                tensors.logits[1] = float("nan")
            return tensors

        other.engine.executor.runner.forward = poisoned
        outputs = other.generate(PROMPTS, GREEDY, use_tqdm=False)

        assert [output.outputs[0].finish_reason for output in outputs] == [
            "length",
            "error",
            "length",
        ]
        assert "nan" in outputs[1].outputs[0].error.lower()
        assert len(tokens(outputs)[1]) == broken_step
        assert used_blocks(other) == 0
    whole = tokens(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
    assert tokens(outputs)[::2] == whole[::2]


def test_kv_events_tell_exactly_what_is_cached():
    seen = []
    with LLM(max_num_seqs=4, max_model_len=256, num_kv_blocks=24) as llm:
        llm.engine.on_kv_events = seen.append

        llm.generate([f"{i} " * 60 for i in range(6)], GREEDY, use_tqdm=False)

        cached = CachedBlocks()
        for batch in seen:
            for event in batch.events:
                cached.apply(event)
        assert [batch.seq for batch in seen] == list(range(1, len(seen) + 1))
        assert cached.on("device") == set(llm.engine.pool.cached_hashes)
