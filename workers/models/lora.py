"""LoRA adapters in PEFT's format: read, checked, cut to a rank, and added within mixed batches."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from stafette.workers.errors import CheckpointError
from stafette.workers.models.decoder import Decoder
from stafette.workers.models.linear import Part

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_UNSUPPORTED = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")


@dataclass(frozen=True, slots=True)
class Adapter:
    """Per matrix of the model: down [rank, inputs] and up [outputs, rank], which is scaled."""

    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]


class LoraBatch:
    """The adapters of one step: which tokens each answers for."""

    def __init__(self, groups: Sequence[tuple[torch.Tensor, Adapter]]) -> None:
        self._groups = groups

    def add(self, parts: Sequence[Part], x: torch.Tensor, out: torch.Tensor) -> None:
        for tokens, adapter in self._groups:
            pairs = [
                (part, adapter.pairs[part.name]) for part in parts if part.name in adapter.pairs
            ]
            rows = x[tokens] if pairs else x
            for part, (down, up) in pairs:
                out[:, part.outputs].index_add_(0, tokens, rows @ down.T @ up.T)


def group_tokens(
    slots: np.ndarray, query_starts: np.ndarray, adapters: Mapping[int, Adapter]
) -> list[tuple[np.ndarray, Adapter]]:
    """Return, for every adapter that a step uses, the tokens of its sequences."""
    per_token = np.repeat(slots, np.diff(query_starts))
    used = np.unique(slots[slots >= 0]).tolist()
    return [(np.flatnonzero(per_token == slot), adapters[slot]) for slot in used]


def load_adapter(path: str | Path, model: Decoder, max_rank: int) -> Adapter:
    """Read an adapter's folder. CheckpointError names what does not fit this model."""
    folder = Path(path)
    config = _read_config(folder, max_rank)
    tensors = _read_tensors(folder / _TENSORS)
    parts = {part.name: part for linear in model.linears() for part in linear.parts}
    modules = _modules(tensors, parts)
    _check_complete(config, modules, parts)
    scale = config["lora_alpha"] / _divisor(config)
    pairs = {}
    for name in modules:
        down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        part = parts[name]
        _check_shapes(part, config["r"], down, up)
        cut = down[:, part.columns], up[part.rows] * scale
        pairs[name] = (cut[0].to(model.device, model.dtype), cut[1].to(model.device, model.dtype))
    return Adapter(pairs)


def _read_config(folder: Path, max_rank: int) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / _CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError("lora", str(folder), f"has no readable {_CONFIG}: {error}") from error
    if config.get("peft_type") != "LORA":
        raise CheckpointError("peft_type", config.get("peft_type"), "only LORA adapters are served")
    if config.get("bias", "none") != "none":
        raise CheckpointError("bias", config["bias"], "only adapters with bias=none are served")
    for name in _UNSUPPORTED:
        if config.get(name):
            raise CheckpointError(name, config[name], "is not supported; merge it into the model")
    rank = config.get("r")
    if not isinstance(rank, int) or not 1 <= rank <= max_rank:
        raise CheckpointError("r", rank, f"must be 1 to {max_rank}; max_lora_rank raises the limit")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float):
        raise CheckpointError("lora_alpha", alpha, "must be a number")
    return config


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors by name, without PEFT's prefix."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name.removeprefix(_PREFIX): file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        remedy = f"cannot be read ({error}); save the adapter with safe_serialization=True"
        raise CheckpointError("lora", str(path), remedy) from error


def _modules(tensors: Mapping[str, torch.Tensor], parts: Mapping[str, Part]) -> set[str]:
    """Return the matrices that the tensors are for; each must be ours and have both halves."""
    names = {}
    for tensor in tensors:
        module, found, _ = tensor.rpartition(".lora_")
        if not found or module not in parts:
            kinds = sorted({name.rpartition(".")[2] for name in parts})
            raise CheckpointError(tensor, "an adapter", f"this model takes {', '.join(kinds)} only")
        names[module] = module
    for module in names:
        for half in ("lora_A", "lora_B"):
            if f"{module}.{half}.weight" not in tensors:
                raise CheckpointError(
                    f"{module}.{half}.weight", None, "is missing from the adapter"
                )
    return set(names)


def _check_complete(
    config: Mapping[str, Any], modules: set[str], parts: Mapping[str, Part]
) -> None:
    """A target that PEFT's configuration lists must be there in every layer."""
    targets = config.get("target_modules")
    if not isinstance(targets, list) or config.get("layers_to_transform") is not None:
        return
    for name in parts:
        if name.rpartition(".")[2] in targets and name not in modules:
            raise CheckpointError(f"{name}.lora_A.weight", None, "is missing from the adapter")


def _check_shapes(part: Part, rank: int, down: torch.Tensor, up: torch.Tensor) -> None:
    outputs, inputs = part.shape
    expected = (rank, inputs), (outputs, rank)
    if (tuple(down.shape), tuple(up.shape)) != expected:
        found = tuple(down.shape), tuple(up.shape)
        raise CheckpointError(f"{part.name}.lora", found, f"must be {expected} for this model")


def _divisor(config: Mapping[str, Any]) -> float:
    rank: int = config["r"]
    return math.sqrt(rank) if config.get("use_rslora") else rank
