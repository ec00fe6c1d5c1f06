"""A GGUF file is the same model as the Hugging Face one that it was converted from."""

import math
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
import transformers

from stafette.workers.errors import CheckpointError
from stafette.workers.weights.checkpoint import GroupedWeight
from stafette.workers.weights.embedded import embedded_model
from stafette.workers.weights.gguf_checkpoint import GgufCheckpoint
from stafette.workers.weights.shapes import verify_shapes

ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe"]
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, mlp_only_layers=[0])


def overrides(architecture: str) -> dict:
    return MOE | {"norm_topk_prob": True} if architecture == "qwen3_moe" else {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_is_the_one_that_was_converted(toys, draft_gguf, tmp_path, architecture):
    model = toys.hf(architecture, **overrides(architecture))
    expected = toys.checkpoint(model)

    checkpoint = GgufCheckpoint(draft_gguf(model).write(tmp_path / "model.gguf"))

    verify_shapes(checkpoint)
    assert sorted(checkpoint.names()) == sorted(expected.names())
    for name in expected.names():
        assert torch.equal(checkpoint.load(name), expected.load(name)), name
        assert checkpoint.shape(name) == tuple(expected.load(name).shape)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_spec_is_the_one_of_the_config(toys, draft_gguf, tmp_path, architecture):
    model = toys.hf(architecture, **overrides(architecture))
    expected = toys.checkpoint(model).spec

    spec = GgufCheckpoint(draft_gguf(model).write(tmp_path / "model.gguf")).spec

    if architecture == "mistral":  # the file says llama, and knows of no window
        expected = replace(expected, architecture="llama", sliding_window=None)
    assert spec == replace(expected, rms_norm_eps=spec.rms_norm_eps)
    assert spec.rms_norm_eps == pytest.approx(expected.rms_norm_eps)


def test_tied_head_is_not_asked_for(toys, draft_gguf, tmp_path):
    model = toys.hf("llama", tie_word_embeddings=True)

    checkpoint = GgufCheckpoint(draft_gguf(model).write(tmp_path / "model.gguf"))

    assert checkpoint.spec.tie_word_embeddings
    assert "lm_head.weight" not in checkpoint
    verify_shapes(checkpoint)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0", "Q5_1"])
def test_rows_of_q_and_k_are_put_in_order_while_quantized(tiny_draft, tmp_path, name):
    kind = gguf.GGMLQuantizationType[name]
    values = np.random.default_rng(0).normal(0, 1, (32, 32)).astype(np.float32)
    packed = gguf.quantize(values, kind)
    tiny_draft.add_packed("blk.0.attn_q.weight", (32, 32), int(kind), packed.tobytes())

    checkpoint = GgufCheckpoint(tiny_draft.write(tmp_path / "model.gguf"))
    weight = checkpoint.load("model.layers.0.self_attn.q_proj.weight")

    # Two heads of 16 rows: row 2i of a head belongs at i, row 2i + 1 at 8 + i.
    order = [head * 16 + 2 * i + odd for head in (0, 1) for odd in (0, 1) for i in range(8)]
    assert isinstance(weight, GroupedWeight)
    assert np.array_equal(weight.dequantize().numpy(), gguf.dequantize(packed, kind)[order])


@pytest.mark.parametrize("name", ["Q4_1", "Q6_K", "BF16", "F16"])
def test_one_expert_is_cut_out_of_the_stack(toys, draft_gguf, tmp_path, name):
    model = toys.hf("qwen3_moe", hidden_size=256, **MOE)
    draft, kind = draft_gguf(model), gguf.GGMLQuantizationType[name]
    elements, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    data = random.integers(0, 128, 4 * 24 * 256 // elements * num_bytes, np.uint8) & 0xBF
    draft.add_packed("blk.1.ffn_up_exps.weight", (4, 24, 256), int(kind), data.tobytes())
    stack = gguf.dequantize(data.reshape(4 * 24, -1), kind).reshape(4, 24, 256)

    checkpoint = GgufCheckpoint(draft.write(tmp_path / "model.gguf"))

    for expert in range(4):
        weight_name = f"model.layers.1.mlp.experts.{expert}.up_proj.weight"
        weight = checkpoint.load_dense(weight_name, torch.float32)
        assert np.array_equal(weight.numpy(), stack[expert])


def test_unknown_tensor_is_named(tiny_draft, tmp_path):
    checkpoint = GgufCheckpoint(tiny_draft.write(tmp_path / "model.gguf"))

    with pytest.raises(CheckpointError, match="is missing from") as caught:
        checkpoint.load("model.layers.7.self_attn.q_proj.weight")

    assert caught.value.value == "model.layers.7.self_attn.q_proj.weight"


def test_yarn_is_read_from_the_metadata(tiny_draft, tmp_path):
    tiny_draft.metadata |= {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 16,
        "llama.rope.scaling.attn_factor": 2.0,
    }

    rope = GgufCheckpoint(tiny_draft.write(tmp_path / "model.gguf")).spec.rope

    assert (rope.kind, rope.factor, rope.original_max_position) == ("yarn", 4.0, 16)
    assert rope.attention_factor == pytest.approx(2 * (1 + 0.1 * math.log(4)))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_rule_of_llama_3_is_recovered_from_its_divisors(tiny_draft, tmp_path, factor):
    parameters = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    sizes = dict(hidden_size=128, num_attention_heads=2, head_dim=64)
    config = transformers.LlamaConfig(**sizes, rope_parameters=parameters)
    slowed, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500_000.0 ** -(torch.arange(0, 64, 2) / 64)
    tiny_draft.add("rope_freqs.weight", plain / slowed)
    tiny_draft.metadata |= {
        "llama.attention.key_length": 64,
        "llama.rope.dimension_count": 64,
        "llama.rope.freq_base": 500_000.0,
    }

    rope = GgufCheckpoint(tiny_draft.write(tmp_path / "model.gguf")).spec.rope

    assert (rope.kind, rope.original_max_position) == ("llama3", 8192)
    assert rope.factor == pytest.approx(factor)


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("general.architecture", "qwen2moe", "nearest is qwen3moe"),
        ("general.architecture", "bert", "supported are llama, qwen2, qwen3, qwen3moe"),
        ("llama.block_count", None, "is missing"),
        ("llama.block_count", 0, "at least 1"),
        ("llama.embedding_length", "wide", "at least 1"),
        ("llama.attention.head_count", [1, 2], "at least 1"),
        ("llama.attention.layer_norm_rms_epsilon", -1.0, "above 0"),
        ("llama.rope.dimension_count", 8, "partial rotary"),
        ("llama.rope.scaling.type", "longrope", "supported are none, linear and yarn"),
        ("tokenizer.ggml.eos_token_id", "end", "must be a token id"),
    ],
)
def test_wrong_metadata_is_named_with_a_remedy(tiny_draft, tmp_path, key, value, remedy):
    tiny_draft.metadata[key] = value
    if value is None:
        del tiny_draft.metadata[key]

    with pytest.raises(CheckpointError, match=remedy) as caught:
        GgufCheckpoint(tiny_draft.write(tmp_path / "model.gguf"))

    assert key.endswith(caught.value.field)


def test_other_divisors_than_llama_3s_are_refused(tiny_draft, tmp_path):
    tiny_draft.add("rope_freqs.weight", torch.tensor([1.0, 3.0, 1.0, 5.0, 1.0, 2.0, 1.0, 8.0]))

    with pytest.raises(CheckpointError, match="Llama 3's rule"):
        GgufCheckpoint(tiny_draft.write(tmp_path / "model.gguf"))


def test_embedded_model_is_bit_for_bit_the_one_that_transformers_reads(hf_smollm2):
    expected = hf_smollm2.state_dict()

    checkpoint = GgufCheckpoint(embedded_model())

    assert set(checkpoint.names()) == set(expected) - {"lm_head.weight"}
    for name in checkpoint.names():
        assert torch.equal(checkpoint.load_dense(name, torch.float32), expected[name]), name
    assert checkpoint.spec.rope.theta == hf_smollm2.config.rope_parameters["rope_theta"]
    assert checkpoint.spec.tie_word_embeddings


def test_embedded_model_keeps_its_matrices_quantized():
    checkpoint = GgufCheckpoint(embedded_model())

    matrices = [checkpoint.load(name) for name in checkpoint.names() if "norm" not in name]

    assert all(isinstance(matrix, GroupedWeight) for matrix in matrices)
    assert [matrix.bits for matrix in matrices].count(8) == 1  # the embedding
