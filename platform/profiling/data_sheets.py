"""The hardware and the models that are known by name, or described by a file of one's own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from stafette.platform.frontend.errors import InvalidSetting
from stafette.workers.models.hf_config import read_spec
from stafette.workers.models.spec import ModelSpec
from stafette.workers.weights.json_file import read_json

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One device, as hardware.yaml describes it; the efficiencies are shares of its rates."""

    name: str
    source: str
    tflops: Mapping[str, float] = field(hash=False)
    memory_gib: float
    memory_gb_s: float
    link_gb_s: float  # to the next device of a tensor-parallel worker, one direction
    network_gb_s: float  # to another worker, one direction
    price_per_hour: float  # US dollars
    compute_efficiency: float = 0.72  # of matrix products with many rows
    attention_efficiency: float = 0.45  # of a prompt's attention
    memory_efficiency: float = 0.82
    link_efficiency: float = 0.7
    network_efficiency: float = 0.8
    all_reduce_us: float = 8.0  # before its first byte
    layer_overhead_us: float = 10.0  # between and at the edges of a layer's kernels
    step_overhead_ms: float = 1.0  # scheduling, sampling, what no kernel does
    usable_memory: float = 0.9  # as gpu_memory_utilization
    activation_gib: float = 2.0  # beside weights and KV

    def __post_init__(self) -> None:
        for each in fields(self)[3:]:
            _check_number(f"hardware.{self.name}.{each.name}", getattr(self, each.name))
        if not isinstance(self.tflops, Mapping) or not self.tflops:
            remedy = "must give a rate for each dtype"
            raise InvalidSetting(f"hardware.{self.name}.tflops", self.tflops, remedy)
        for dtype, rate in self.tflops.items():
            _check_number(f"hardware.{self.name}.tflops.{dtype}", rate)

    def flops(self, dtype: str) -> float:
        if dtype not in self.tflops:
            remedy = f"{self.name} has no rate for it; it has {', '.join(self.tflops)}"
            raise InvalidSetting("--dtype", dtype, remedy)
        return self.tflops[dtype] * 1e12


def hardware(name: str) -> Hardware:
    """Return a known device, or the only one that a YAML file describes."""
    if name.endswith((".yaml", ".yml")):
        entries = _read_yaml(Path(name))
        if len(entries) != 1:
            raise InvalidSetting("--hardware", name, "must describe exactly one device")
        name = next(iter(entries))
    else:
        entries = _read_yaml(_HERE / "hardware.yaml")
        name = _known("--hardware", name, entries, "a YAML file of yours")
    return _hardware(name, entries[name])


def model_spec(name: str) -> ModelSpec:
    """Return the shape of a known model, with or without its owner's name, or of a config.json."""
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        return read_spec(read_json(path))
    entries = _read_yaml(_HERE / "models.yaml")
    short = {full.rpartition("/")[2]: full for full in entries}
    if name in entries:
        return read_spec(entries[name])
    return read_spec(entries[short[_known("--model", name, short, "a config.json")]])


def _known(flag: str, name: str, known: Iterable[str], otherwise: str) -> str:
    folded = {each.lower(): each for each in known}
    if name.lower() in folded:
        return folded[name.lower()]
    near = get_close_matches(name.lower(), folded, n=1, cutoff=0.3)
    nearest = f", the nearest is {folded[near[0]]}" if near else ""
    remedy = f"is not known{nearest}; there are {', '.join(folded.values())}, or {otherwise}"
    raise InvalidSetting(flag, name, remedy)


def _hardware(name: str, told: Any) -> Hardware:
    known = {each.name for each in fields(Hardware)} - {"name"}
    if not isinstance(told, dict):
        raise InvalidSetting(f"hardware.{name}", told, "must be a mapping")
    for key, value in told.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InvalidSetting(f"hardware.{name}.{key}", value, f"is unknown{hint}")
    try:
        return Hardware(name=name, **told)
    except TypeError as error:
        remedy = str(error).partition("missing ")[2] or str(error)
        raise InvalidSetting(f"hardware.{name}", sorted(told), f"lacks {remedy}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidSetting("--hardware", str(path), f"cannot be read: {error}") from None
    if not isinstance(told, dict):
        raise InvalidSetting("--hardware", str(path), "must hold a mapping of names")
    return told


def _check_number(name: str, value: object) -> None:
    if isinstance(value, Mapping):
        return
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not isfinite(value) or value <= 0:  # type: ignore[operator,arg-type]
        raise InvalidSetting(name, value, "must be a number above 0")
