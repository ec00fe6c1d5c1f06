"""Writes a recommended fleet as a YAML file that `stafette serve` takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.planner.config import SloConfig
from stafette.platform.profiling.points import FEATURES
from stafette.platform.profiling.recommending import Candidate, Engine, Load

_CPUS_A_WORKER = 4  # beside its device: tokens, sockets, Ray
_ROOM = 2  # for requests longer than the usual one, as a multiple of it


@dataclass(frozen=True, slots=True)
class Subject:
    """What the fleet serves, and on what."""

    model: str
    dtype: str | None = None  # None: the model's own
    on_gpu: bool = True
    num_cpus: int = _CPUS_A_WORKER  # of each worker; a CPU engine runs as many threads
    transport: str = ""  # by which a hand-over was measured


def fleet(candidate: Candidate, load: Load, slo: SloConfig, subject: Subject) -> dict[str, Any]:
    """Return the settings; names as in `stafette config show`."""
    engine = candidate.engine
    longest = _ROOM * (load.prompt_tokens + load.output_tokens)
    flags: dict[str, Any] = {"max_model_len": min(engine.limits.max_model_len or longest, longest)}
    if engine.tensor_parallel > 1:
        flags["tensor_parallel_size"] = engine.tensor_parallel
    worker: dict[str, Any] = {"num_cpus": subject.num_cpus}
    if subject.dtype is not None:
        flags["dtype"] = subject.dtype
    if subject.on_gpu:
        worker["num_gpus"] = engine.tensor_parallel
    return {
        "model": subject.model,
        "engine": flags,
        "pools": {
            name: {"replicas": replicas, **worker, "engine": _own_flags(candidate)}
            for name, replicas in _pools(candidate).items()
        },
        "router": {
            "priors": {name: _prior(engine) for name in _pools(candidate)},
            **_transfer(engine, subject.transport),
        },
        "planner": {"slo": {"ttft_ms": slo.ttft_ms, "itl_ms": slo.itl_ms}},
    }


def write(path: Path, settings: Mapping[str, Any], comments: list[str]) -> None:
    """Write it with what it rests on above it."""
    heading = "".join(f"# {line}\n" for line in comments)
    body = yaml.safe_dump(dict(settings), sort_keys=False, default_flow_style=False)
    try:
        path.write_text(f"{heading}{body}", encoding="utf-8")
    except OSError as error:
        raise InvalidSetting("--out", str(path), f"cannot be written: {error}") from None


def _pools(candidate: Candidate) -> dict[str, int]:
    split = candidate.split
    if split.both:
        return {"aggregated": split.both}
    return {"prefill": split.prefill, "decode": split.decode}


def _own_flags(candidate: Candidate) -> dict[str, int]:
    engine = candidate.engine
    return {
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
    }


def _transfer(engine: Engine, transport: str) -> dict[str, dict[str, float]]:
    """Return what the router may believe of pulls, where a hand-over was measured."""
    where = {"shm": "same_host", "tcp": "same_rack"}.get(transport)
    if where is None:
        return {}
    speed = engine.profile
    rate, latency = speed.transfer_gb_s, speed.transfer_latency_ms
    return {"transfer": {f"{where}_gb_s": round(rate, 4), f"{where}_ms": round(latency, 4)}}


def _prior(engine: Engine) -> dict[str, float]:
    """Return what the router may believe of such workers before they work."""
    speed = engine.profile
    known: dict[str, float] = {name: float(f"{getattr(speed, name):.4g}") for name in FEATURES[:5]}
    return known | {"max_num_batched_tokens": engine.max_num_batched_tokens}
