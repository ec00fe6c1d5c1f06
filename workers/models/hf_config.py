"""A Hugging Face config.json -> ModelSpec, with the defaults of Hugging Face's own classes."""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, get_args

from stafette.workers.errors import CheckpointError
from stafette.workers.models.spec import Architecture, ModelSpec, MoeSpec, RopeSpec

Config = Mapping[str, Any]
DType = Literal["bfloat16", "float16", "float32"]

_MOST_LAYERS = 10_000  # more is damage, not a model
_QWEN3_HEAD_DIM = 128
_DEFAULT_WINDOW = 4096  # of Mistral and the Qwens, when config.json says nothing
_QWEN_WINDOW_STARTS_AT = 28  # Qwen2 and Qwen3: the layers before it see everything


def read_spec(
    config: Config, generation: Config | None = None, files_dtype: DType = "bfloat16"
) -> ModelSpec:
    """Return the model's shape.

    `generation` is generation_config.json, which knows best where an answer ends; `files_dtype` is
    what the tensors have, for a config.json that does not say.
    """
    architecture = _architecture(config)
    _check_supported(config)
    hidden, heads = count(config, "hidden_size"), count(config, "num_attention_heads")
    qwen3 = architecture in ("qwen3", "qwen3_moe")
    usual_head = _QWEN3_HEAD_DIM if architecture == "qwen3" else hidden // heads
    ends = generation or {}
    return ModelSpec(
        architecture=architecture,
        vocab_size=count(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=count(config, "intermediate_size"),
        num_layers=_layers(config),
        num_heads=heads,
        num_kv_heads=count(config, "num_key_value_heads", heads),
        head_dim=count(config, "head_dim", usual_head),
        rms_norm_eps=number(config, "rms_norm_eps", 1e-6),
        rope=_read_rope(config),
        max_position_embeddings=count(config, "max_position_embeddings"),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=architecture == "qwen2" or bool(config.get("attention_bias", False)),
        qk_norm=qwen3,
        sliding_window=_sliding_window(config, architecture),
        moe=_read_moe(config) if architecture == "qwen3_moe" else None,
        dtype=_dtype(config, files_dtype),
        bos_token_id=_first(ends.get("bos_token_id", config.get("bos_token_id"))),
        eos_token_ids=_ids(ends.get("eos_token_id", config.get("eos_token_id"))),
    )


def count(config: Config, key: str, default: int | None = None) -> int:
    """Return a size. CheckpointError when it is missing, not a whole number, or below 1."""
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise CheckpointError(f"config.json {key}", None, "is missing: download the file again")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"config.json {key}", value, "must be a whole number of at least 1")
    return value


def number(config: Config, key: str, default: float | None = None) -> float:
    """Return a positive number, whole or not."""
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise CheckpointError(f"config.json {key}", None, "is missing: download the file again")
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not math.isfinite(value) or value <= 0:
        raise CheckpointError(f"config.json {key}", value, "must be a number above 0")
    return float(value)


def _layers(config: Config) -> int:
    layers = count(config, "num_hidden_layers")
    if layers > _MOST_LAYERS:
        remedy = f"must be at most {_MOST_LAYERS}"
        raise CheckpointError("config.json num_hidden_layers", layers, remedy)
    return layers


def _whole_numbers(config: Config, key: str) -> list[int]:
    values = config.get(key)
    values = [] if values is None else values
    if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
        raise CheckpointError(f"config.json {key}", values, "must be a list of whole numbers")
    return values


def _architecture(config: Config) -> Architecture:
    known: Sequence[Architecture] = get_args(Architecture)
    name = config.get("model_type")
    for architecture in known:
        if name == architecture:
            return architecture
    near = get_close_matches(str(name), known, n=1)
    hint = f"; the nearest is {near[0]}" if near else ""
    remedy = f"is not supported; supported are {', '.join(known)}{hint}"
    raise CheckpointError("config.json model_type", name, remedy)


def _check_supported(config: Config) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise CheckpointError("config.json hidden_act", activation, "only silu is supported")


def _read_rope(config: Config) -> RopeSpec:
    """Read `rope_parameters`, or the older pair of `rope_theta` and `rope_scaling`."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise CheckpointError("config.json rope_parameters", given, "must be an object")
    rope: dict[str, Any] = dict(given)
    rope.setdefault("rope_theta", config.get("rope_theta"))
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = number(rope, "rope_theta", 10_000.0)
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) not in (1, None):
        remedy = "is not supported: the whole head must be rotated"
        raise CheckpointError("config.json partial_rotary_factor", rope, remedy)
    match kind:
        case "default":
            return RopeSpec(theta=theta)
        case "linear":
            return RopeSpec(theta=theta, kind="linear", factor=number(rope, "factor"))
        case "llama3":
            return _llama3(rope, theta, _trained_length(config, rope))
        case "yarn":
            return _yarn(rope, theta, _trained_length(config, rope))
    remedy = "is not supported; supported are default, linear, llama3 and yarn"
    raise CheckpointError("config.json rope_type", kind, remedy)


def _trained_length(config: Config, rope: Config) -> int:
    key = "original_max_position_embeddings"
    usual = count(config, key, count(config, "max_position_embeddings"))
    return count(rope, key, usual)


def _llama3(rope: Config, theta: float, trained: int) -> RopeSpec:
    return RopeSpec(
        theta=theta,
        kind="llama3",
        factor=number(rope, "factor"),
        original_max_position=trained,
        low_freq_factor=number(rope, "low_freq_factor"),
        high_freq_factor=number(rope, "high_freq_factor"),
    )


def _yarn(rope: Config, theta: float, trained: int) -> RopeSpec:
    if not rope.get("truncate", True):
        raise CheckpointError("config.json truncate", False, "yarn without it is not supported")
    factor = number(rope, "factor")
    return RopeSpec(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_max_position=trained,
        beta_fast=number(rope, "beta_fast", 32.0),
        beta_slow=number(rope, "beta_slow", 1.0),
        attention_factor=_attention_factor(rope, factor),
    )


def _attention_factor(rope: Config, factor: float) -> float | None:
    if rope.get("attention_factor") is not None:
        return number(rope, "attention_factor")
    if not rope.get("mscale") or not rope.get("mscale_all_dim"):
        return None
    growth = 0.1 * math.log(factor) if factor > 1 else 0.0
    return (growth * number(rope, "mscale") + 1.0) / (growth * number(rope, "mscale_all_dim") + 1.0)


def _sliding_window(config: Config, architecture: Architecture) -> int | None:
    """Return the window of all layers. CheckpointError when only some layers have one."""
    if architecture == "llama":
        return None
    if architecture != "mistral" and not config.get("use_sliding_window", False):
        return None
    window = config.get("sliding_window", _DEFAULT_WINDOW)
    if window is None:
        return None
    windowed = _windowed_layers(config, architecture)
    if not any(windowed):
        return None
    if all(windowed):
        return count(config, "sliding_window", _DEFAULT_WINDOW)
    remedy = f"only some layers have a window, which is not supported: below {window} tokens "
    remedy += "the model is the same with use_sliding_window false and max_model_len lowered to it"
    raise CheckpointError("config.json use_sliding_window", True, remedy)


def _windowed_layers(config: Config, architecture: Architecture) -> list[bool]:
    layers = _layers(config)
    if architecture not in ("qwen2", "qwen3"):
        return [True]
    types = config.get("layer_types")
    if isinstance(types, list):
        return [name == "sliding_attention" for name in types]
    start = config.get("max_window_layers", _QWEN_WINDOW_STARTS_AT)
    if not isinstance(start, int):
        raise CheckpointError("config.json max_window_layers", start, "must be a whole number")
    return [False] * (start > 0) + [True] * (layers > start)


def _read_moe(config: Config) -> MoeSpec:
    layers = range(_layers(config))
    step = count(config, "decoder_sparse_step", 1)
    named = set(_whole_numbers(config, "mlp_only_layers"))
    # The second name is that of newer versions of Hugging Face's library.
    key = "num_local_experts" if "num_local_experts" in config else "num_experts"
    experts, chosen = count(config, key), count(config, "num_experts_per_tok")
    if chosen > experts:
        remedy = f"must not exceed {key} = {experts}"
        raise CheckpointError("config.json num_experts_per_tok", chosen, remedy)
    return MoeSpec(
        num_experts=experts,
        experts_per_token=chosen,
        intermediate_size=count(config, "moe_intermediate_size"),
        norm_topk_prob=bool(config.get("norm_topk_prob", False)),
        dense_layers=tuple(n for n in layers if n in named or (n + 1) % step),
    )


def _dtype(config: Config, files_dtype: DType) -> DType:
    given = config.get("dtype") or config.get("torch_dtype")
    if given is None:
        return files_dtype
    known: Sequence[DType] = get_args(DType)
    for dtype in known:
        if str(given).removeprefix("torch.") == dtype:
            return dtype
    raise CheckpointError("config.json dtype", given, f"must be one of {', '.join(known)}")


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) for token in ids):
        raise CheckpointError("eos_token_id", value, "must be a token id or a list of them")
    return tuple(ids)


def _first(value: Any) -> int | None:
    ids = _ids(value)
    return ids[0] if ids else None
