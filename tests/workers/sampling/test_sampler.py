"""The sampler over a toy language, in which a token's logits depend on the token before it."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.workers.batch import NewSeq, Sampled
from stafette.workers.sampling.params import SamplingParams, StructuredOutput
from stafette.workers.sampling.sampler import Sampler, SampleRow

VOCAB = 200
EOS = 0
TABLE = torch.from_numpy(
    np.random.default_rng(1).normal(size=(VOCAB, VOCAB)).astype(np.float32) * 2
)
TABLE[:, EOS] = -20.0


def make_sampler(seed: int = 0) -> Sampler:
    return Sampler((EOS,), None, seed)


@dataclass
class Talk:
    """One sequence as the engine would hold it."""

    seq_id: int
    params: SamplingParams
    prompt: list[int] = field(default_factory=lambda: [3, 7, 3])
    output: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.output

    def new_seq(self) -> NewSeq:
        return NewSeq(self.seq_id, list(self.prompt), list(self.output), self.params)


def step(sampler: Sampler, talks: list[Talk], drafts: list[list[int]] | None = None) -> None:
    drafts = drafts or [[] for _ in talks]
    inputs: list[int] = []
    rows = []
    for talk, guess in zip(talks, drafts, strict=True):
        rows.append(SampleRow(talk.seq_id, len(inputs), guess))
        inputs += [talk.tokens[-1], *guess]
    sampled, failed = sampler.sample(TABLE[inputs], rows)
    assert not failed
    for talk in talks:
        talk.output += sampled[talk.seq_id].token_ids


def talk_alone(talk: Talk, steps: int, seed: int = 0) -> list[int]:
    sampler = make_sampler(seed)
    sampler.add(talk.new_seq())
    for _ in range(steps):
        step(sampler, [talk])
    return talk.output


def naive_greedy(talk: Talk) -> int:
    """Return the next token by vLLM's definition, one token at a time."""
    logits = TABLE[talk.tokens[-1]].numpy().copy()
    params = talk.params
    for token, bias in params.logit_bias.items():
        logits[token] += np.float32(bias)
    if len(talk.output) < params.min_tokens:
        logits[[EOS, *params.stop_token_ids]] = -np.inf
    for token in set(talk.tokens):
        factor = np.float32(params.repetition_penalty)
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
        count = talk.output.count(token)
        logits[token] -= np.float32(params.frequency_penalty) * np.float32(count)
        logits[token] -= np.float32(params.presence_penalty) * np.float32(count > 0)
    return int(logits.argmax())


VARIED = [
    {"temperature": 0},
    {"seed": 1},
    {"seed": 2, "top_p": 0.8},
    {"seed": 3, "top_k": 7, "temperature": 1.5},
    {"seed": 4, "min_p": 0.1},
    {"seed": 5, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"seed": 6, "temperature": 0, "presence_penalty": 1.0, "logit_bias": {9: 4.0}},
]


@settings(max_examples=60, deadline=None)
@given(
    repetition=st.sampled_from([0.5, 1.0, 1.7]),
    presence=st.sampled_from([-1.5, 0.0, 0.7]),
    frequency=st.sampled_from([-0.3, 0.0, 1.1]),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-5, 5, width=32), max_size=4),
    min_tokens=st.integers(0, 6),
)
def test_greedy_tokens_are_those_of_the_definition(
    repetition: float,
    presence: float,
    frequency: float,
    bias: dict[int, float],
    min_tokens: int,
) -> None:
    params = SamplingParams(
        temperature=0,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
        min_tokens=min_tokens,
        stop_token_ids=[5, 11],
    )
    talk = Talk(1, params)
    sampler = make_sampler()
    sampler.add(talk.new_seq())

    for _ in range(12):
        expected = naive_greedy(talk)

        step(sampler, [talk])

        assert talk.output[-1] == expected


def test_end_token_waits_for_min_tokens() -> None:
    params = SamplingParams(temperature=0, logit_bias={EOS: 100}, min_tokens=3)

    output = talk_alone(Talk(1, params), steps=4)

    assert EOS not in output[:3]
    assert output[3] == EOS


def test_seeded_sequence_gets_the_same_tokens_in_any_company() -> None:
    alone = [talk_alone(Talk(9, SamplingParams(**fields)), 12) for fields in VARIED]
    sampler = make_sampler(seed=5)
    talks = [Talk(i, SamplingParams(**fields)) for i, fields in enumerate(VARIED)]
    for talk in talks:
        sampler.add(talk.new_seq())

    for turn in range(12):
        order = talks[turn % 3 :] + talks[: turn % 3]
        step(sampler, order)

    assert [talk.output for talk in talks] == alone


@pytest.mark.parametrize("fields", VARIED, ids=str)
def test_seeded_sequence_goes_on_the_same_way_elsewhere(fields: dict[str, object]) -> None:
    whole = talk_alone(Talk(1, SamplingParams(**fields)), 12)
    talk = Talk(1, SamplingParams(**fields), output=whole[:5])

    talk_alone(talk, 7, seed=99)

    assert talk.output == whole


def test_unseeded_sequences_differ_from_each_other_but_not_from_run_to_run() -> None:
    def run(seed: int) -> list[list[int]]:
        sampler = make_sampler(seed)
        talks = [Talk(i, SamplingParams()) for i in range(3)]
        for talk in talks:
            sampler.add(talk.new_seq())
        for _ in range(8):
            step(sampler, talks)
        return [talk.output for talk in talks]

    first = run(0)

    assert len({tuple(output) for output in first}) == 3
    assert run(0) == first
    assert run(1) != first


@settings(max_examples=60, deadline=None)
@given(fields=st.sampled_from(VARIED), choose=st.randoms(use_true_random=False))
def test_drafts_never_change_the_tokens(fields: dict[str, object], choose: object) -> None:
    plain = talk_alone(Talk(1, SamplingParams(**fields)), 20)
    talk, other = Talk(1, SamplingParams(**fields)), Talk(2, SamplingParams(temperature=0))
    sampler = make_sampler()
    sampler.add(talk.new_seq())
    sampler.add(other.new_seq())

    steps = 0
    while len(talk.output) < 12:
        ahead = plain[len(talk.output) : len(talk.output) + choose.randint(0, 4)]
        guess = [token if choose.random() < 0.7 else 1 for token in ahead]
        step(sampler, [talk, other], [guess, [1]])
        steps += 1

    assert talk.output == plain[: len(talk.output)]
    assert steps <= 12


def test_right_drafts_come_all_at_once_with_one_token_more() -> None:
    plain = talk_alone(Talk(1, SamplingParams(seed=4)), 5)
    talk = Talk(1, SamplingParams(seed=4))
    sampler = make_sampler()
    sampler.add(talk.new_seq())

    step(sampler, [talk], [plain[:4]])

    assert talk.output == plain


def test_nothing_is_taken_behind_an_end_token() -> None:
    talk = Talk(1, SamplingParams(temperature=0, logit_bias={EOS: 100}))
    sampler = make_sampler()
    sampler.add(talk.new_seq())

    step(sampler, [talk], [[EOS, EOS]])

    assert talk.output == [EOS]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("fields", VARIED, ids=str)
def test_broken_logits_fail_their_sequence_and_no_other(
    bad: float, fields: dict[str, object]
) -> None:
    sampler = make_sampler()
    for seq_id in range(3):
        sampler.add(Talk(seq_id, SamplingParams(**fields)).new_seq())
    logits = TABLE[[3, 3, 3]]
    logits[1, 42] = bad

    sampled, failed = sampler.sample(logits, [SampleRow(i, i, []) for i in range(3)])

    assert sampled.keys() == {0, 2}
    assert "NaN or infinity" in failed[1]


def test_sequence_without_any_token_left_fails_by_what_forbids_them() -> None:
    sampler = make_sampler()
    sampler.add(Talk(1, SamplingParams(min_tokens=2)).new_seq())
    only_end = torch.full((1, VOCAB), -torch.inf)
    only_end[0, EOS] = 1.0

    _, failed = sampler.sample(only_end, [SampleRow(1, 0, [])])

    assert "min_tokens" in failed[1]


def test_structured_sequence_fails_alone_where_no_grammar_can_be_had() -> None:
    sampler = make_sampler()
    structured = StructuredOutput(kind="regex", value="a")
    sampler.add(Talk(1, SamplingParams(structured=structured)).new_seq())
    sampler.add(Talk(2, SamplingParams()).new_seq())

    sampled, failed = sampler.sample(TABLE[[1, 2]], [SampleRow(1, 0, []), SampleRow(2, 1, [])])

    assert sampled.keys() == {2}
    assert "structured" in failed[1]


@pytest.mark.parametrize("fields", VARIED, ids=str)
def test_logits_stay_as_they_are(fields: dict[str, object]) -> None:
    sampler = make_sampler()
    sampler.add(Talk(1, SamplingParams(**fields, logprobs=3)).new_seq())
    logits = TABLE[[3]]

    sampler.sample(logits, [SampleRow(1, 0, [])])

    assert torch.equal(logits, TABLE[[3]])


def test_logprobs_are_of_the_raw_logits() -> None:
    params = SamplingParams(temperature=0, logit_bias={9: 100}, logprobs=4)
    sampler = make_sampler()
    sampler.add(Talk(1, params).new_seq())

    sampled, _ = sampler.sample(TABLE[[3]], [SampleRow(1, 0, [])])

    (scored,) = logprobs_of(sampled[1])
    reference = torch.log_softmax(TABLE[3].double(), -1)
    best = reference.topk(4)
    assert scored.token_id == 9
    assert scored.logprob == pytest.approx(float(reference[9]), abs=1e-6)
    assert scored.rank == int((reference > reference[9]).sum()) + 1
    assert list(scored.top) == best.indices.tolist()
    assert list(scored.top.values()) == pytest.approx(best.values.tolist(), abs=1e-6)


def test_each_accepted_draft_has_its_own_logprobs() -> None:
    plain = talk_alone(Talk(1, SamplingParams(temperature=0)), 3)
    sampler = make_sampler()
    sampler.add(Talk(1, SamplingParams(temperature=0, logprobs=0)).new_seq())

    sampled, _ = sampler.sample(TABLE[[3, *plain[:2]]], [SampleRow(1, 0, plain[:2])])

    scored = logprobs_of(sampled[1])
    assert [item.token_id for item in scored] == plain
    assert [item.rank for item in scored] == [1, 1, 1]
    assert all(item.top == {} for item in scored)


def test_sequences_ask_for_logprobs_each_for_itself() -> None:
    sampler = make_sampler()
    for seq_id, count in enumerate([None, 0, 2]):
        sampler.add(Talk(seq_id, SamplingParams(logprobs=count)).new_seq())

    sampled, _ = sampler.sample(TABLE[[1, 2, 3]], [SampleRow(i, i, []) for i in range(3)])

    assert sampled[0].logprobs is None
    assert [len(logprobs_of(sampled[i])[0].top) for i in (1, 2)] == [0, 2]


def test_sequence_known_by_its_id_is_replaced_and_an_unknown_one_removed_in_peace() -> None:
    sampler = make_sampler()
    sampler.add(Talk(1, SamplingParams(temperature=0, repetition_penalty=2.0)).new_seq())

    sampler.add(Talk(1, SamplingParams(temperature=0)).new_seq())
    sampler.remove(77)

    sampled, _ = sampler.sample(TABLE[[3]], [SampleRow(1, 0, [])])
    assert sampled[1].token_ids == [int(TABLE[3].argmax())]


def logprobs_of(sampled: Sampled) -> list:
    assert sampled.logprobs is not None
    return sampled.logprobs
