"""Writes a checkpoint of Qwen3-0.6B's shape with random weights: speed needs no trained ones."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
_SCALE = 0.004  # a code's step: 16 codes then spread as widely as the dense weights do
_ZERO_OF_8 = 0x7777_7777  # eight zero points of 8, each stored one too low


def write(directory: Path, quantized: bool = False, **changes: Any) -> Path:
    """Write the checkpoint unless it is there; config.json comes last and vouches for it.

    `quantized` packs the layers' matrices as GPTQ does.
    """
    if (directory / "config.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **changes}
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes(config):
        if quantized and name.endswith("_proj.weight"):
            tensors |= _packed(name.removesuffix("weight"), shape, generator)
        else:
            tensors[name] = _random(shape, generator)
    if quantized:
        config["quantization_config"] = GPTQ
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    return directory


def shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor's name and shape."""
    hidden = config["hidden_size"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(config["num_hidden_layers"]):
        for name, shape in _layer_shapes(config):
            yield f"model.layers.{layer}.{name}.weight", shape


def _layer_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, head = (config[k] for k in ("hidden_size", "intermediate_size", "head_dim"))
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    yield from (("input_layernorm", (hidden,)), ("post_attention_layernorm", (hidden,)))
    yield from (("self_attn.q_norm", (head,)), ("self_attn.k_norm", (head,)))
    yield from (("self_attn.q_proj", (queries, hidden)), ("self_attn.o_proj", (hidden, queries)))
    yield from (("self_attn.k_proj", (keys, hidden)), ("self_attn.v_proj", (keys, hidden)))
    yield from (("mlp.gate_proj", (inner, hidden)), ("mlp.up_proj", (inner, hidden)))
    yield "mlp.down_proj", (hidden, inner)


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)


def _packed(
    prefix: str, shape: tuple[int, ...], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return a random matrix of 4-bit codes, eight to an int down the columns."""
    rows, columns = shape
    groups = columns // GPTQ["group_size"]
    codes = torch.randint(-(2**31), 2**31, (columns // 8, rows), generator=generator)
    return {
        f"{prefix}qweight": codes.to(torch.int32),
        f"{prefix}qzeros": torch.full((groups, rows // 8), _ZERO_OF_8, dtype=torch.int32),
        f"{prefix}scales": torch.full((groups, rows), _SCALE, dtype=torch.float16),
    }
