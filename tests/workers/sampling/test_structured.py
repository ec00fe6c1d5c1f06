"""Structured output with the embedded model's tokenizer: even noise has to speak the language."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from stafette.workers.batch import NewSeq
from stafette.workers.config import EMBEDDED_MODEL
from stafette.workers.errors import RequestError
from stafette.workers.sampling.params import SamplingParams, StructuredOutput
from stafette.workers.sampling.sampler import Sampler, SampleRow
from stafette.workers.sampling.structured import GrammarCompiler
from stafette.workers.weights.opening import open_tokenizer
from stafette.workers.weights.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 3]}, "maxItems": 3},
        "married": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "tags", "married"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_tokenizer(EMBEDDED_MODEL, None)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer.to_json(), tokenizer.vocab_size, tokenizer.eos_token_ids)


def schema(value: Any) -> StructuredOutput:
    return StructuredOutput(kind="json_schema", value=json.dumps(value))


class Noise:
    """A sampler that is fed random logits, for one structured sequence beside a free one."""

    def __init__(self, tokenizer: Tokenizer, grammars: GrammarCompiler) -> None:
        self.tokenizer = tokenizer
        self.ends = tokenizer.eos_token_ids
        self.sampler = Sampler(self.ends, grammars, seed=0)

    def speak(self, params: SamplingParams, noise: int) -> tuple[str, list[int]]:
        """Return what was said until the end token, and its tokens."""
        random = np.random.default_rng(noise)
        self.sampler.add(NewSeq(1, [1], [], params))
        self.sampler.add(NewSeq(2, [1], [], SamplingParams(temperature=0)))
        tokens: list[int] = []
        while not tokens or tokens[-1] not in self.ends:
            assert len(tokens) < 120, self.tokenizer.decode(tokens)
            logits = random.normal(size=(2, self.tokenizer.vocab_size)).astype(np.float32) * 5
            rows = [SampleRow(2, 0, []), SampleRow(1, 1, [])]
            sampled, failed = self.sampler.sample(torch.from_numpy(logits), rows)
            assert not failed
            assert sampled[2].token_ids == [logits[0].argmax()]
            tokens += sampled[1].token_ids
        return self.tokenizer.decode(tokens[:-1], skip_special_tokens=False), tokens


@pytest.fixture(scope="module")
def noise(tokenizer: Tokenizer, grammars: GrammarCompiler) -> Noise:
    return Noise(tokenizer, grammars)


@pytest.mark.parametrize("temperature", [0, 1])
def test_noise_under_a_schema_is_json_of_that_schema(noise: Noise, temperature: float) -> None:
    for seed in range(6):
        params = SamplingParams(temperature=temperature, seed=seed, structured=schema(PERSON))

        person = json.loads(noise.speak(params, seed)[0])

        assert person.keys() == set(PERSON["required"])
        assert isinstance(person["name"], str)
        assert len(person["name"]) <= 8
        assert type(person["age"]) is int
        assert 0 <= person["age"] <= 150
        assert len(person["tags"]) <= 3
        assert all(tag in ("a", "b", 3) for tag in person["tags"])
        assert person["married"] in (True, False, None)


@pytest.mark.parametrize("penalties", [{}, {"repetition_penalty": 1.5, "top_p": 0.9}], ids=str)
def test_noise_under_a_regex_matches_it_whole(noise: Noise, penalties: dict[str, float]) -> None:
    pattern = r"(\d{1,3}\.){3}[0-9]{1,3}( (up|down))?"
    structured = StructuredOutput(kind="regex", value=pattern)

    for seed in range(6):
        text, _ = noise.speak(SamplingParams(seed=seed, structured=structured, **penalties), seed)

        assert re.fullmatch(pattern, text)


def test_noise_makes_one_of_the_choices(noise: Noise) -> None:
    choices = ["yes", "no", 'say "maybe"', "naïve\n後"]
    structured = StructuredOutput(kind="choice", value=json.dumps(choices))

    said = {noise.speak(SamplingParams(seed=i, structured=structured), i)[0] for i in range(25)}

    assert said <= set(choices)
    assert len(said) > 1


def test_noise_follows_a_grammar(noise: Noise) -> None:
    lark = 'start: item ("," item)~0..3\nitem: "x" | "(" pair ")"\npair: "x" "," "x"'
    structured = StructuredOutput(kind="grammar", value=lark)

    for seed in range(6):
        text, _ = noise.speak(SamplingParams(seed=seed, structured=structured), seed)

        assert re.fullmatch(r"(x|\(x,x\))(,(x|\(x,x\))){0,3}", text)


def test_any_json_object_will_do_where_no_schema_is_given(
    tokenizer: Tokenizer, grammars: GrammarCompiler
) -> None:
    matcher = grammars.matcher(StructuredOutput(kind="json_object"))

    for token in tokenizer.encode('{"a": [1, {"b": null}]}', add_special_tokens=False):
        assert grammars.masks([matcher])[0, token]
        matcher.accept(token)

    ends = list(tokenizer.eos_token_ids)
    assert np.flatnonzero(grammars.masks([matcher])[0]).tolist() == sorted(ends)


@pytest.mark.parametrize("indent", [None, 2, 4])
def test_json_may_be_laid_out_but_not_padded(
    tokenizer: Tokenizer, grammars: GrammarCompiler, indent: int | None
) -> None:
    def allows(text: str) -> bool:
        matcher = grammars.matcher(StructuredOutput(kind="json_object"))
        for token in tokenizer.encode(text, add_special_tokens=False):
            if not grammars.masks([matcher])[0, token]:
                return False
            matcher.accept(token)
        return True

    laid_out = json.dumps({"a": [1, {"b": None}], "c": "d"}, indent=indent)

    assert allows(laid_out)
    assert not allows(laid_out.replace(": ", ":  "))
    assert not allows(laid_out.replace("[", "[\n\n"))


def test_end_token_is_forbidden_until_the_answer_is_complete(
    tokenizer: Tokenizer, grammars: GrammarCompiler
) -> None:
    matcher = grammars.matcher(StructuredOutput(kind="regex", value="ab+"))
    end = tokenizer.eos_token_ids[0]

    allowed_before = grammars.masks([matcher])[0, end]
    for token in tokenizer.encode("abb", add_special_tokens=False):
        matcher.accept(token)

    assert not allowed_before
    assert grammars.masks([matcher])[0, end]


def test_sampling_on_after_the_end_gives_end_tokens_and_no_failure(
    noise: Noise, tokenizer: Tokenizer
) -> None:
    structured = StructuredOutput(kind="choice", value='["yes"]')
    noise.speak(SamplingParams(structured=structured), 0)

    logits = torch.zeros(1, tokenizer.vocab_size)
    sampled, failed = noise.sampler.sample(logits, [SampleRow(1, 0, [])])

    assert not failed
    assert sampled[1].token_ids[0] in tokenizer.eos_token_ids


def test_resumed_sequence_goes_on_within_its_grammar(
    noise: Noise, grammars: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    params = SamplingParams(seed=1, structured=schema(PERSON))
    _, tokens = noise.speak(params, 1)
    elsewhere = Sampler(tokenizer.eos_token_ids, grammars, seed=9)

    elsewhere.add(NewSeq(5, [1], tokens[:-1], params))
    sampled, _ = elsewhere.sample(torch.zeros(1, tokenizer.vocab_size), [SampleRow(5, 0, [])])

    assert sampled[5].token_ids == tokens[-1:]


def test_drafts_are_verified_within_the_grammar(
    noise: Noise, grammars: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    structured = StructuredOutput(kind="regex", value="(ab){4}")
    params = SamplingParams(temperature=0, structured=structured)
    logits = torch.zeros(4, tokenizer.vocab_size)
    sampler = Sampler(tokenizer.eos_token_ids, grammars, seed=0)
    plain = []
    sampler.add(NewSeq(1, [1], [], params))
    for _ in range(2):
        plain += sampler.sample(logits[:1], [SampleRow(1, 0, [])])[0][1].token_ids

    sampler.add(NewSeq(1, [1], [], params))
    sampled, failed = sampler.sample(logits, [SampleRow(1, 0, [plain[0], 999, 999])])

    assert not failed
    assert sampled[1].token_ids == plain


def test_answer_from_outside_the_grammar_fails_its_sequence(
    grammars: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    params = SamplingParams(structured=StructuredOutput(kind="choice", value='["yes"]'))
    sampler = Sampler(tokenizer.eos_token_ids, grammars, seed=0)

    sampler.add(NewSeq(1, [1], tokenizer.encode("never"), params))
    _, failed = sampler.sample(torch.zeros(1, tokenizer.vocab_size), [SampleRow(1, 0, [])])

    assert failed[1].startswith("structured")


NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}


@pytest.mark.parametrize(
    "impossible",
    [
        False,
        {"enum": []},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "array", "items": False, "minItems": 1},
        {"$ref": "#/$defs/node", "$defs": {"node": NODE | {"required": ["next"]}}},
        {"type": "colour"},
    ],
    ids=str,
)
def test_schema_that_nothing_matches_is_refused(grammars: GrammarCompiler, impossible: Any) -> None:
    with pytest.raises(RequestError) as caught:
        grammars.validate(schema(impossible))

    assert caught.value.field == "structured.json_schema"


@pytest.mark.parametrize(
    "possible",
    [
        {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
        {
            "$ref": "#/$defs/tree",
            "$defs": {
                "tree": {
                    "type": "object",
                    "properties": {"leaves": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                    "required": ["leaves"],
                }
            },
        },
        {
            "$ref": "#/$defs/list",
            "$defs": {
                "list": {
                    "anyOf": [
                        {"type": "null"},
                        NODE | {"required": ["next"]},
                    ]
                },
                "node": {"$ref": "#/$defs/list"},
            },
        },
    ],
    ids=["optional", "empty array", "null ends it"],
)
def test_schema_that_refers_to_itself_but_can_end_is_taken(
    grammars: GrammarCompiler, possible: Any
) -> None:
    grammars.validate(schema(possible))


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("regex", "[a", "unclosed character class"),
        ("regex", "(?=a)b", "look-ahead"),
        ("regex", r"[^\s\S]", "no text matches"),
        ("grammar", "start: missing", "unknown name"),
        ("choice", "[]", "list of strings"),
        ("choice", '["a", ""]', "list of strings"),
        ("choice", "yes", "not JSON"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", "[]", "object or a boolean"),
    ],
)
def test_malformed_language_is_refused_with_the_reason(
    grammars: GrammarCompiler, kind: Any, value: str, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        grammars.validate(StructuredOutput(kind=kind, value=value))

    assert caught.value.field == f"structured.{kind}"
    assert caught.value.value == value


def test_model_without_an_end_token_cannot_serve_structured_output(tokenizer: Tokenizer) -> None:
    endless = GrammarCompiler(tokenizer.to_json(), tokenizer.vocab_size, ())

    with pytest.raises(RequestError, match="end token"):
        endless.validate(StructuredOutput(kind="json_object"))


def test_threads_may_compile_at_once(grammars: GrammarCompiler, tokenizer: Tokenizer) -> None:
    def first_tokens(number: int) -> list[int]:
        matcher = grammars.matcher(StructuredOutput(kind="regex", value=f"{number % 4}x"))
        return np.flatnonzero(grammars.masks([matcher])[0]).tolist()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(first_tokens, range(64)))

    for number, tokens in enumerate(found):
        texts = {tokenizer.decode([token]) for token in tokens}
        assert texts <= {f"{number % 4}", f"{number % 4}x"}
        assert texts
