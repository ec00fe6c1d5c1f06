"""config.json, old and new, comes down to what Hugging Face's own classes make of it."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from stafette.workers.errors import CheckpointError
from stafette.workers.models.hf_config import read_spec
from stafette.workers.models.rope import Rope

PLAIN = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
MOE = PLAIN | {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_missing_keys_take_the_defaults_of_the_class():
    spec, theirs = read_spec(PLAIN), transformers.LlamaConfig(**PLAIN)

    assert spec.num_kv_heads == theirs.num_key_value_heads
    assert spec.head_dim == theirs.head_dim
    assert spec.rms_norm_eps == theirs.rms_norm_eps
    assert spec.rope.theta == theirs.rope_parameters["rope_theta"]
    assert spec.tie_word_embeddings == theirs.tie_word_embeddings
    assert spec.sliding_window is None


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers"])
def test_missing_size_is_named(key):
    config = {name: value for name, value in PLAIN.items() if name != key}

    with pytest.raises(CheckpointError, match="is missing") as caught:
        read_spec(config)

    assert caught.value.field == f"config.json {key}"


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("model_type", "qwen2_moe", "the nearest is qwen3_moe"),
        ("model_type", "bert", "supported are llama, mistral, qwen2, qwen3, qwen3_moe"),
        ("model_type", None, "supported are llama"),
        ("hidden_size", "64", "whole number"),
        ("hidden_size", 0, "at least 1"),
        ("num_attention_heads", True, "whole number"),
        ("rms_norm_eps", 0, "above 0"),
        ("hidden_act", "gelu", "only silu"),
        ("dtype", "int8", "one of bfloat16, float16, float32"),
        ("partial_rotary_factor", 0.5, "whole head"),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}, "supported are default, linear"),
        ("rope_scaling", {"type": "linear"}, "is missing"),
        ("rope_parameters", {"rope_type": "yarn", "truncate": False, **YARN}, "not supported"),
        ("eos_token_id", "end", "token id"),
    ],
)
def test_wrong_value_is_named_with_a_remedy(key, value, remedy):
    with pytest.raises(CheckpointError, match=remedy):
        read_spec(PLAIN | {key: value})


ROPES = [
    {"rope_theta": 500_000.0},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0}},
    {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5_000.0},
    {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 500_000.0},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500_000.0, **LLAMA3}},
    {"rope_scaling": {"rope_type": "yarn", **YARN}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0}},
    {"rope_scaling": {"rope_type": "yarn", "attention_factor": 0.5, **YARN}},
    {"rope_scaling": {"rope_type": "yarn", "mscale": 0.7, "mscale_all_dim": 1.3, **YARN}},
    {"rope_scaling": {"rope_type": "yarn", "beta_fast": 16, "beta_slow": 2, **YARN}},
]


@pytest.mark.parametrize("given", ROPES)
def test_positions_turn_as_fast_as_in_transformers(given):
    config = PLAIN | given
    theirs = transformers.LlamaConfig(**config)
    kind = theirs.rope_parameters["rope_type"]
    if kind == "default":
        head = theirs.head_dim
        frequencies = theirs.rope_parameters["rope_theta"] ** -(torch.arange(0, head, 2) / head)
        factor = 1.0
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](theirs, "cpu")
    positions = torch.arange(300)

    spec = read_spec(config)
    cos, sin = Rope(spec.rope, spec.head_dim, torch.device("cpu")).angles(positions, torch.float32)

    angles, half = positions[:, None].double() * frequencies.double(), spec.head_dim // 2
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(cos[:, 0, :half].double(), angles.cos() * factor, **close)
    torch.testing.assert_close(sin[:, 0, half:].double(), angles.sin() * factor, **close)


@pytest.mark.parametrize(
    ("given", "window"),
    [
        ({"model_type": "llama", "sliding_window": 32}, None),
        ({"model_type": "mistral", "sliding_window": 32}, 32),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "qwen2", "sliding_window": 32}, None),
        ({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": True}, None),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 32,
                "use_sliding_window": True,
                "max_window_layers": 0,
            },
            32,
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 32,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention"] * 4,
            },
            32,
        ),
        (MOE | {"sliding_window": 32}, None),
        (MOE | {"sliding_window": 32, "use_sliding_window": True}, 32),
    ],
)
def test_window_is_the_one_that_transformers_would_use(given, window):
    assert read_spec(PLAIN | given).sliding_window == window


def test_window_of_some_layers_only_is_refused():
    given = {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 2}

    with pytest.raises(CheckpointError, match="only some layers"):
        read_spec(PLAIN | given)


def test_qwens_have_their_biases_norms_and_heads():
    assert read_spec(PLAIN | {"model_type": "qwen2"}).attention_bias
    assert read_spec(PLAIN | {"model_type": "qwen3"}).qk_norm
    assert read_spec(PLAIN | {"model_type": "qwen3"}).head_dim == 128
    assert not read_spec(PLAIN | {"model_type": "qwen3"}).attention_bias


@pytest.mark.parametrize(
    ("given", "dense"),
    [
        ({}, ()),
        ({"decoder_sparse_step": 2}, (0, 2)),
        ({"mlp_only_layers": [1, 3]}, (1, 3)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, (0, 1, 2)),
    ],
)
def test_dense_layers_are_those_of_transformers(given, dense):
    sizes = {"num_experts": 2, "num_experts_per_tok": 1}
    config = transformers.Qwen3MoeConfig(**(MOE | sizes | given))
    with torch.device("meta"):
        layers = transformers.Qwen3MoeModel(config).layers

    spec = read_spec(MOE | given)

    assert spec.moe.dense_layers == dense
    assert dense == tuple(n for n, layer in enumerate(layers) if not hasattr(layer.mlp, "experts"))


def test_more_experts_a_token_than_there_are_is_refused():
    with pytest.raises(CheckpointError, match="must not exceed num_experts = 8"):
        read_spec(MOE | {"num_experts_per_tok": 9})


def test_newer_files_count_local_experts():
    config = {name: value for name, value in MOE.items() if name != "num_experts"}

    assert read_spec(config | {"num_local_experts": 6}).moe.num_experts == 6


def test_generation_config_knows_best_where_an_answer_ends():
    config = PLAIN | {"eos_token_id": 2, "bos_token_id": 1}

    assert read_spec(config).eos_token_ids == (2,)
    assert read_spec(config, {"eos_token_id": [7, 2]}).eos_token_ids == (7, 2)
    assert read_spec(config, {"temperature": 0.6}).eos_token_ids == (2,)
    assert read_spec(config).bos_token_id == 1


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "torch.float32"}, "float32"),
        ({}, "bfloat16"),
    ],
)
def test_dtype_is_read_under_both_names(given, dtype):
    assert read_spec(PLAIN | given, files_dtype="bfloat16").dtype == dtype


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**9) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
KEYS = [*MOE, "rope_parameters", "rope_scaling", "rope_theta", "sliding_window", "layer_types"]
KEYS += ["use_sliding_window", "max_window_layers", "mlp_only_layers", "decoder_sparse_step"]
KEYS += ["eos_token_id", "dtype", "head_dim", "num_key_value_heads", "rms_norm_eps"]
ROPE_KEYS = ["rope_type", "rope_theta", "factor", "mscale", "mscale_all_dim", "attention_factor"]
MODEL_TYPES = st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "qwen3_moe"])


@settings(max_examples=500, deadline=None)
@given(
    model_type=MODEL_TYPES,
    odd=st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1, max_size=3),
    rope=st.none() | st.dictionaries(st.sampled_from(ROPE_KEYS), JSON, max_size=3),
)
def test_odd_values_give_a_spec_or_a_checkpoint_error(model_type, odd, rope):
    config = MOE | {"model_type": model_type} | odd
    if rope is not None:
        config["rope_parameters"] = {"rope_type": "yarn", "factor": 2.0} | rope

    try:
        spec = read_spec(config)
    except CheckpointError:
        return

    assert spec.num_layers >= 1
