"""What models advise for sampling, in each form in which they say it."""

import json

import pytest

from stafette.workers.errors import CheckpointError
from stafette.workers.weights.advised_sampling import advised_sampling


def directory(path, **values):
    path.mkdir(exist_ok=True)
    (path / "generation_config.json").write_text(json.dumps(values))
    return str(path)


def test_a_directory_advises_by_its_generation_config(tmp_path):
    model = directory(tmp_path / "m", temperature=0.6, top_k=20, top_p=None, eos_token_id=[1, 2])

    assert advised_sampling("auto", model) == {"temperature": 0.6, "top_k": 20}


def test_a_directory_without_that_file_advises_nothing(tmp_path):
    assert advised_sampling("auto", str(tmp_path)) == {}


def test_a_gguf_advises_by_llama_cpps_keys(empty_draft, tmp_path):
    empty_draft.metadata |= {"general.sampling.temp": 0.5, "general.sampling.top_k": 40}
    path = empty_draft.write(tmp_path / "m.gguf")

    assert advised_sampling("auto", str(path)) == {"temperature": 0.5, "top_k": 40}


def test_the_embedded_model_is_advised_as_its_card_says():
    assert advised_sampling("auto", "smollm2") == {"temperature": 0.2, "top_p": 0.9}


def test_the_user_may_want_none_or_anothers(tmp_path):
    other = directory(tmp_path / "other", repetition_penalty=1.1)

    assert advised_sampling("vllm", "smollm2") == {}
    assert advised_sampling(other, "smollm2") == {"repetition_penalty": 1.1}


@pytest.mark.parametrize("values", [{"temperature": -1}, {"top_p": "much"}, {"top_k": [1]}])
def test_advice_that_cannot_be_followed_is_refused(tmp_path, values):
    with pytest.raises(CheckpointError, match="generation_config = .*set generation_config: vllm"):
        advised_sampling("auto", directory(tmp_path / "m", **values))


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        advised_sampling(str(tmp_path / "missing"), "smollm2")
