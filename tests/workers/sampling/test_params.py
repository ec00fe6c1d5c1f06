"""SamplingParams: what is refused, what is settled, what travels."""

import math

import msgpack
import pytest

from stafette.workers.errors import RequestError
from stafette.workers.sampling.params import SamplingParams, StructuredOutput

ENGINE = {"vocab_size": 100, "max_logprobs": 5, "max_model_len": 32, "prompt_len": 8}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("n", 0),
        ("n", True),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", -1),
        ("prompt_logprobs", -1),
        ("seed", 2**64),
        ("seed", 0.5),
        ("stop", ["a", ""]),
        ("stop", ""),
        ("stop", [1]),
        ("stop_token_ids", ["a"]),
        ("logit_bias", {3: 100.5}),
        ("logit_bias", {3: math.nan}),
        ("logit_bias", {"x": 1.0}),
    ],
)
def test_value_out_of_bounds_is_refused_by_its_field(name: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})

    assert caught.value.field == name
    assert caught.value.remedy


def test_min_tokens_may_not_exceed_max_tokens() -> None:
    with pytest.raises(RequestError, match="min_tokens = 5: must not exceed max_tokens = 4"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_structured_output_does_not_go_with_ignore_eos() -> None:
    with pytest.raises(RequestError, match="ignore_eos"):
        SamplingParams(structured=StructuredOutput(kind="json_object"), ignore_eos=True)


@pytest.mark.parametrize("fields", [{"kind": "xml", "value": "a"}, {"kind": "regex", "value": ""}])
def test_structured_output_needs_a_known_kind_and_its_text(fields: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="structured"):
        StructuredOutput(**fields)


def test_stop_may_be_one_string_or_a_list() -> None:
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")


def test_top_k_of_minus_one_means_all() -> None:
    assert SamplingParams(top_k=-1).top_k == 0


def test_logit_bias_takes_the_string_keys_of_json() -> None:
    assert SamplingParams(logit_bias={"7": 1}).logit_bias == {7: 1.0}


@pytest.mark.parametrize(
    ("fields", "changed", "named"),
    [
        ({"stop_token_ids": [100]}, {}, "stop_token_ids"),
        ({"logit_bias": {-1: 1.0}}, {}, "logit_bias"),
        ({"logprobs": 6}, {}, "logprobs"),
        ({"prompt_logprobs": 6}, {}, "prompt_logprobs"),
        ({}, {"prompt_len": 0}, "prompt"),
        ({}, {"prompt_len": 32}, "prompt"),
        ({"min_tokens": 25, "max_tokens": None}, {}, "min_tokens"),
    ],
)
def test_engine_refuses_what_it_cannot_hold(
    fields: dict[str, object], changed: dict[str, int], named: str
) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**fields).check_against(**ENGINE | changed)

    assert caught.value.field == named


def test_engine_takes_values_at_its_bounds() -> None:
    params = SamplingParams(stop_token_ids=[0, 99], logit_bias={99: 1}, logprobs=5, min_tokens=16)

    params.check_against(**ENGINE | {"prompt_len": 16})


def test_parameters_survive_msgpack() -> None:
    params = SamplingParams(
        temperature=0.5,
        logit_bias={3: -1.5},
        stop=["x"],
        stop_token_ids=[4],
        max_tokens=None,
        structured=StructuredOutput(kind="regex", value="a+"),
    )

    sent = msgpack.unpackb(msgpack.packb(params.to_dict()))

    assert SamplingParams.from_dict(sent) == params


def test_only_what_differs_from_the_defaults_travels() -> None:
    assert SamplingParams().to_dict() == {}
    assert SamplingParams(seed=3).to_dict() == {"seed": 3}


def test_unknown_parameter_is_named() -> None:
    with pytest.raises(RequestError, match="top_q = 1: is not a sampling parameter"):
        SamplingParams.from_dict({"top_q": 1})
