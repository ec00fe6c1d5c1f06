"""How a model's maker advises to sample from it: temperature and what belongs to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stafette.workers.config import EMBEDDED_MODEL
from stafette.workers.errors import CheckpointError, RequestError
from stafette.workers.sampling.params import SamplingParams
from stafette.workers.weights.json_file import read_json
from stafette.workers.weights.opening import resolve

Advice = Mapping[str, float]  # by SamplingParams' names

_FILE = "generation_config.json"
_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_GGUF_NAMES = {  # llama.cpp's -> ours
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.top_k": "top_k",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
# Its GGUF holds none; these are of the model card, HuggingFaceTB/SmolLM2-135M-Instruct.
_EMBEDDED: Advice = {"temperature": 0.2, "top_p": 0.9}


def advised_sampling(source: str, model: str) -> Advice:
    """Return the advice of `source`: auto (the model's own), vllm (none), or a directory's."""
    if source == "vllm":
        return {}
    if source != "auto":
        return _checked(_picked(read_json(Path(source).expanduser() / _FILE)), source)
    path = resolve(model)
    if path.is_dir():
        file = path / _FILE
        return _checked(_picked(read_json(file)), str(file)) if file.is_file() else {}
    found = _of_gguf(path)
    return _checked(found, str(path)) if found or model != EMBEDDED_MODEL else _EMBEDDED


def _picked(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in _NAMES if values.get(name) is not None}


def _of_gguf(path: Path) -> dict[str, Any]:
    from stafette.workers.weights.gguf import GgufFile

    metadata = GgufFile(path).metadata
    return {name: metadata[key] for key, name in _GGUF_NAMES.items() if key in metadata}


def _checked(advice: dict[str, Any], origin: str) -> Advice:
    try:
        SamplingParams(**advice)
    except (RequestError, TypeError) as error:
        remedy = f"advises what cannot be: {error}; mend it, or set generation_config: vllm"
        raise CheckpointError("generation_config", origin, remedy) from None
    return advice
