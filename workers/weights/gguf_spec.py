"""A GGUF header -> ModelSpec: metadata under llama.cpp's keys, and what the tensors tell."""

import math
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np

from stafette.workers.errors import CheckpointError
from stafette.workers.models.spec import Architecture, ModelSpec, MoeSpec, RopeSpec
from stafette.workers.weights.gguf import GgufFile
from stafette.workers.weights.gguf_formats import FORMATS

ARCHITECTURES: dict[str, Architecture] = {
    "llama": "llama",  # Mistral too: converters store it under this name
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
}

_LLAMA3_CONTEXT = 8192  # rope_freqs gives factors only; every Llama 3 was trained on this length
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_DTYPES: dict[str, Literal["bfloat16", "float16", "float32"]] = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}


def read_spec(file: GgufFile) -> ModelSpec:
    """Return the model's shape. CheckpointError names what is missing or not supported."""
    fields = _Fields(file.metadata, _architecture(file.metadata))
    hidden, heads = fields.count("embedding_length"), fields.count("attention.head_count")
    head_dim = fields.count("attention.key_length", hidden // heads)
    moe = _read_moe(file, fields) if fields.prefix == "qwen3moe" else None
    return ModelSpec(
        architecture=ARCHITECTURES[fields.prefix],
        vocab_size=_vocab_size(file),
        hidden_size=hidden,
        intermediate_size=fields.count("feed_forward_length", moe.intermediate_size if moe else 0),
        num_layers=fields.count("block_count"),
        num_heads=heads,
        num_kv_heads=fields.count("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        rope=_read_rope(file, fields, head_dim),
        max_position_embeddings=fields.count("context_length"),
        tie_word_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        moe=moe,
        dtype=_dtype(file),
        bos_token_id=_token_id(file.metadata, "bos_token_id"),
        eos_token_ids=eos_token_ids(file.metadata),
    )


def eos_token_ids(metadata: dict[str, Any]) -> tuple[int, ...]:
    """Return the tokens that end an answer, the most usual first."""
    ids = (_token_id(metadata, name) for name in _ENDS)
    return tuple(dict.fromkeys(token for token in ids if token is not None))


class _Fields:
    """The metadata of one architecture, each value checked as it is read."""

    def __init__(self, metadata: dict[str, Any], prefix: str) -> None:
        self._metadata, self.prefix = metadata, prefix

    def count(self, name: str, default: int | None = None) -> int:
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(self._key(name), value, "must be a whole number of at least 1")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise CheckpointError(self._key(name), value, "must be a number above 0")
        return float(value)

    def text(self, name: str, default: str) -> str:
        return str(self._get(name, default))

    def flag(self, name: str, default: bool) -> bool:
        return bool(self._get(name, default))

    def _get(self, name: str, default: object) -> Any:
        value = self._metadata.get(self._key(name), default)
        if value is None:
            remedy = "is missing from the file's metadata; convert the model again"
            raise CheckpointError(self._key(name), None, remedy)
        return value

    def _key(self, name: str) -> str:
        return f"{self.prefix}.{name}"


def _architecture(metadata: dict[str, Any]) -> str:
    name = str(metadata.get("general.architecture"))
    if name not in ARCHITECTURES:
        near = get_close_matches(name, ARCHITECTURES, n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        remedy = f"is not supported; supported are {', '.join(ARCHITECTURES)}{hint}"
        raise CheckpointError("general.architecture", name, remedy)
    return name


def _vocab_size(file: GgufFile) -> int:
    table = file.tensors.get("token_embd.weight")
    if table is None:
        raise CheckpointError("token_embd.weight", None, "is missing; download the file again")
    return table.shape[0]


def _read_rope(file: GgufFile, fields: _Fields, head_dim: int) -> RopeSpec:
    rotated = fields.count("rope.dimension_count", head_dim)
    if rotated != head_dim:
        remedy = f"must be the head's whole size, {head_dim}: partial rotary is not supported"
        raise CheckpointError("rope.dimension_count", rotated, remedy)
    theta = fields.number("rope.freq_base", 10_000.0)
    if "rope_freqs.weight" in file.tensors:
        return _llama3_rope(file, theta, head_dim)
    kind = fields.text("rope.scaling.type", "none")
    if kind == "none":
        return RopeSpec(theta=theta)
    factor = fields.number("rope.scaling.factor", 1.0)
    if kind == "linear":
        return RopeSpec(theta=theta, kind="linear", factor=factor)
    if kind == "yarn":
        return _yarn_rope(fields, theta, factor)
    remedy = "is not supported; supported are none, linear and yarn"
    raise CheckpointError("rope.scaling.type", kind, remedy)


def _yarn_rope(fields: _Fields, theta: float, factor: float) -> RopeSpec:
    trained = fields.count("context_length")
    extra = fields.number("rope.scaling.attn_factor", 1.0)
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return RopeSpec(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_max_position=fields.count("rope.scaling.original_context_length", trained),
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=None if extra == 1.0 else extra * usual,
    )


def _llama3_rope(file: GgufFile, theta: float, head_dim: int) -> RopeSpec:
    """Recover Llama 3's rule from the divisors that it left in rope_freqs.weight."""
    tensor = file.tensors["rope_freqs.weight"]
    known = FORMATS[tensor.kind].name == "F32" and tensor.shape == (head_dim // 2,)
    divisors = file.rows(tensor).view(np.float32).reshape(-1) if known else np.empty(0, np.float32)
    factor = float(divisors.max(initial=1.0))
    rope = RopeSpec(
        theta=theta, kind="llama3", factor=factor, original_max_position=_LLAMA3_CONTEXT
    )
    if not known or not np.allclose(divisors, llama3_divisors(rope, head_dim), rtol=1e-4):
        remedy = "does not follow Llama 3's rule with its usual constants: not supported"
        raise CheckpointError("rope_freqs.weight", divisors.tolist(), remedy)
    return rope


def llama3_divisors(rope: RopeSpec, head_dim: int) -> np.ndarray:
    """Return by how much Llama 3's rule slows each frequency down."""
    frequencies = rope.theta ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = rope.original_max_position * frequencies / (2 * math.pi)
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1 - smooth) / rope.factor + smooth)


def _read_moe(file: GgufFile, fields: _Fields) -> MoeSpec:
    layers = min(fields.count("block_count"), len(file.tensors))
    dense = (n for n in range(layers) if f"blk.{n}.ffn_gate_inp.weight" not in file.tensors)
    return MoeSpec(
        num_experts=fields.count("expert_count"),
        experts_per_token=fields.count("expert_used_count"),
        intermediate_size=fields.count("expert_feed_forward_length"),
        norm_topk_prob=fields.flag("expert_weights_norm", True),
        dense_layers=tuple(dense),
    )


def _dtype(file: GgufFile) -> Literal["bfloat16", "float16", "float32"]:
    """Return the matrices' own type; quantized ones are made dense in bfloat16."""
    matrices = [FORMATS[t.kind].name for t in file.tensors.values() if len(t.shape) > 1]
    commonest = max(sorted(set(matrices)), key=matrices.count, default="BF16")
    return _DTYPES.get(commonest, "bfloat16")


def _token_id(metadata: dict[str, Any], name: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is not None and (not isinstance(value, int) or value < 0):
        raise CheckpointError(f"tokenizer.ggml.{name}", value, "must be a token id")
    return value
