"""A directory that transformers saved opens as the same model, however it was split or typed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from stafette.workers.errors import CheckpointError
from stafette.workers.weights.opening import open_checkpoint

MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, mlp_only_layers=[0])


def same(checkpoint, expected) -> None:
    assert sorted(checkpoint.names()) == sorted(expected.names())
    for name in expected.names():
        assert torch.equal(checkpoint.load(name), expected.load(name)), name
        assert checkpoint.shape(name) == tuple(expected.load(name).shape), name


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("shard_size", ["1GB", "40KB"])
def test_saved_model_opens_as_itself(toys, tmp_path, architecture, shard_size):
    model = toys.hf(architecture, **(MOE if architecture == "qwen3_moe" else {}))
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    expected = toys.checkpoint(model)

    checkpoint = open_checkpoint(str(tmp_path))

    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "40KB")
    same(checkpoint, expected)
    ends = {"eos_token_ids", "bos_token_id"}
    for field in set(expected.spec.__dataclass_fields__) - ends:
        assert getattr(checkpoint.spec, field) == getattr(expected.spec, field), field


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype_is_the_one_of_the_files(toys, tmp_path, dtype):
    toys.hf("llama").to(getattr(torch, dtype)).save_pretrained(tmp_path)

    checkpoint = open_checkpoint(str(tmp_path))

    assert checkpoint.spec.dtype == dtype
    assert checkpoint.load("lm_head.weight").dtype == getattr(torch, dtype)


def test_tied_model_needs_no_head(toys, tmp_path):
    toys.hf("llama", tie_word_embeddings=True).save_pretrained(tmp_path)

    checkpoint = open_checkpoint(str(tmp_path))

    assert checkpoint.spec.tie_word_embeddings
    assert "lm_head.weight" not in checkpoint


def test_stacked_experts_appear_one_by_one(toys, tmp_path):
    model = toys.hf("qwen3_moe", **MOE)
    model.save_pretrained(tmp_path)
    stacked = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert "model.layers.1.mlp.experts.gate_up_proj" in stacked
    save_file(stacked, tmp_path / "model.safetensors")

    same(open_checkpoint(str(tmp_path)), toys.checkpoint(model))


def test_model_saved_without_its_head_is_found(toys, tmp_path):
    model = toys.hf("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {k.removeprefix("model."): v for k, v in load_file(path).items()}
    path.unlink()  # a new file: the old one may still be mapped
    save_file(tensors, path)

    same(open_checkpoint(str(tmp_path)), toys.checkpoint(model))


@pytest.fixture
def saved(toys, tmp_path):
    toys.hf("llama").save_pretrained(tmp_path)
    return tmp_path


def change_tensors(directory, **changes) -> None:
    """Replace tensors by name; None removes one."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."))
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    path.unlink()  # a new file: the old one may still be mapped
    save_file(tensors, path)


def test_every_missing_tensor_is_named(saved):
    change_tensors(saved, lm_head__weight=None, model__layers__1__mlp__up_proj__weight=None)

    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(saved))

    assert caught.value.field == "model.layers.1.mlp.up_proj.weight"
    assert "lm_head.weight is missing" in caught.value.remedy


def test_wrong_shape_is_named_with_the_right_one(saved):
    change_tensors(saved, model__layers__0__self_attn__k_proj__weight=torch.zeros(24, 48))

    with pytest.raises(CheckpointError, match=r"must be \(16, 48\), not \(24, 48\)") as caught:
        open_checkpoint(str(saved))

    assert caught.value.field == "model.layers.0.self_attn.k_proj.weight"


def test_integers_are_not_weights(saved):
    change_tensors(saved, model__norm__weight=torch.zeros(48, dtype=torch.int32))

    with pytest.raises(CheckpointError, match="supported are BF16, F16, F32"):
        open_checkpoint(str(saved)).load("model.norm.weight")


@pytest.mark.parametrize("kept", [0, 4, 100, -100])
def test_damaged_file_is_named(saved, kept):
    path = saved / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:kept])

    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        open_checkpoint(str(saved))

    assert caught.value.value == str(path)


def test_missing_shard_and_missing_entry_are_named(toys, tmp_path):
    toys.hf("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    index = tmp_path / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    index.write_text(
        json.dumps({"weight_map": listed["weight_map"] | {"ghost": "gone.safetensors"}})
    )

    with pytest.raises(CheckpointError, match=r"gone\.safetensors"):
        open_checkpoint(str(tmp_path))

    shard = next(iter(listed["weight_map"].values()))
    index.write_text(json.dumps({"weight_map": listed["weight_map"] | {"ghost": shard}}))
    with pytest.raises(CheckpointError, match="ghost"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("listed", [None, [], {"lm_head.weight": 3}])
def test_index_that_lists_nothing_is_named(saved, listed):
    (saved / "model.safetensors").unlink()
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": listed}))

    with pytest.raises(CheckpointError, match="needs a weight_map") as caught:
        open_checkpoint(str(saved))

    assert caught.value.field == index.name


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_config_that_is_no_object_is_named(saved, text):
    (saved / "config.json").write_text(text)

    with pytest.raises(CheckpointError, match="JSON") as caught:
        open_checkpoint(str(saved))

    assert caught.value.field == "config.json"


def test_directory_without_safetensors_says_what_it_wants(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        open_checkpoint(str(saved))


def test_directory_without_config_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="No such file") as caught:
        open_checkpoint(str(tmp_path))

    assert caught.value.field == "config.json"
