"""A directory of Hugging Face's: config.json, and safetensors files read when asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from stafette.workers.errors import CheckpointError
from stafette.workers.models.hf_config import read_spec
from stafette.workers.weights.checkpoint import Checkpoint, Weight
from stafette.workers.weights.json_file import read_json

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_FLOATS: dict[str, Literal["bfloat16", "float16", "float32"]] = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
}
_FUSED_GATE_UP, _FUSED_DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


class TensorFiles:
    """The safetensors files of a directory as one: names, shapes, dtypes, tensors."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = {path: _open(path) for path in _shards(directory)}
        self._where = {name: file for file in self._files.values() for name in file.keys()}  # noqa: SIM118
        self._check_index()

    def names(self) -> Iterator[str]:
        return iter(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return the dtype in safetensors' letters, such as BF16."""
        return str(self._slice(name).get_dtype())

    def load(self, name: str) -> torch.Tensor:
        if name not in self._where:
            raise _missing(name, self.directory)
        tensor: torch.Tensor = self._where[name].get_tensor(name)
        return tensor

    def _slice(self, name: str) -> Any:
        if name not in self._where:
            raise _missing(name, self.directory)
        return self._where[name].get_slice(name)

    def _check_index(self) -> None:
        if self.directory / _SINGLE in self._files:
            return
        for name in _weight_map(self.directory):
            if name not in self._where:
                raise _missing(name, self.directory)


class SafetensorsCheckpoint(Checkpoint):
    """Tensors as the files have them; experts that were saved stacked appear one by one."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        self.files = TensorFiles(directory)
        self.quantization = "none"
        # Files of a model without its head have names without their first part.
        headless = "embed_tokens.weight" in self.files
        self._stored = {
            f"model.{name}" if headless else name: name
            for name in self.files.names()
            if not name.endswith("rotary_emb.inv_freq")
        }
        self.spec = read_spec(config, _generation(directory), self._files_dtype())
        self._experts = dict(self._unstacked())

    def names(self) -> Iterator[str]:
        yield from (name for name in self._stored if not name.endswith(_STACKED))
        yield from self._experts

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self._experts:
            stacked, _, half = self._experts[name]
            _, rows, columns = self.files.shape(stacked)
            return rows if half is None else rows // 2, columns
        return self.files.shape(self._stored_name(name))

    def load(self, name: str) -> Weight:
        if name in self._experts:
            stacked, expert, half = self._experts[name]
            matrix = self.files.load(stacked)[expert]
            return matrix if half is None else matrix.chunk(2)[half]
        tensor = self.files.load(self._stored_name(name))
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            remedy = f"is not supported; supported are {', '.join(_FLOATS)}"
            raise CheckpointError(f"{name} dtype", str(tensor.dtype), remedy)
        return tensor

    def _stored_name(self, name: str) -> str:
        stored = self._stored.get(name)
        if stored is None:
            raise _missing(name, self.files.directory)
        return stored

    def _files_dtype(self) -> Literal["bfloat16", "float16", "float32"]:
        table = self._stored.get("model.embed_tokens.weight")
        if table is None:
            raise _missing("model.embed_tokens.weight", self.files.directory)
        return _FLOATS.get(self.files.dtype(table), "bfloat16")

    def _unstacked(self) -> Iterator[tuple[str, tuple[str, int, int | None]]]:
        """Name each expert's share: the stacked tensor, the expert, which half of its rows."""
        for name, stored in self._stored.items():
            for ending, parts in _STACKED_PARTS.items():
                if name.endswith(ending):
                    prefix = name.removesuffix(ending.rpartition(".")[2])
                    for expert in range(self.files.shape(stored)[0]):
                        for part, half in parts.items():
                            yield f"{prefix}{expert}.{part}.weight", (stored, expert, half)


_STACKED_PARTS: dict[str, dict[str, int | None]] = {
    _FUSED_GATE_UP: {"gate_proj": 0, "up_proj": 1},
    _FUSED_DOWN: {"down_proj": None},
}
_STACKED = tuple(_STACKED_PARTS)


def _generation(directory: Path) -> dict[str, Any] | None:
    path = directory / "generation_config.json"
    return read_json(path) if path.is_file() else None


def _shards(directory: Path) -> list[Path]:
    if (directory / _SINGLE).is_file():
        return [directory / _SINGLE]
    if (directory / _INDEX).is_file():
        return [directory / name for name in sorted(set(_weight_map(directory).values()))]
    remedy = f"holds neither {_SINGLE} nor {_INDEX}: download them, or convert what is there"
    raise CheckpointError("model", str(directory), remedy)


def _weight_map(directory: Path) -> dict[str, str]:
    """Return which file holds which tensor."""
    names = read_json(directory / _INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(_INDEX, names, "needs a weight_map from tensors to files")
    return names


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        remedy = f"cannot be read ({error}); download it again"
        raise CheckpointError("safetensors file", str(path), remedy) from error


def _missing(name: str, directory: Path) -> CheckpointError:
    return CheckpointError("tensor", name, f"is missing from {directory}; download it again")
