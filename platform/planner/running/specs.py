"""The pools of a fleet as the planner knows them before their workers have said anything."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stafette.platform.config import Config
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.planner.config import PoolLimits, SloConfig
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.pool_spec import PoolSpec
from stafette.platform.profiling.document import load_profile, subject_of
from stafette.workers.mocker.speed_profile import Profile


def pool_specs(config: Config) -> dict[str, PoolSpec]:
    """Return all pools; those that are not planned may only have the size that they have.

    InvalidSetting tells of a profile that is another model's, or a promise that it rules out.
    """
    for name, pool in config.pools.items():
        if pool.profile is not None or pool.mock is not None:
            _check_promise(config.planner.slo, name, _speed(config, name))
    limits = {name: _limits(config, name) for name in config.pools}
    replace(config.planner, pools=limits)  # which looks at the budget once more
    return {
        name: PoolSpec(
            role=config.role(name),
            limits=limits[name],
            worker_class=config.pools[name].worker_class or name,
            model=engine_model(config, name),
        )
        for name in config.pools
    }


def engine_model(config: Config, pool: str) -> EngineModel:
    """Return what a pool's profile and flags say; what they do not say has its default."""
    flags, default = config.engine_flags(pool), EngineModel()
    blocks = flags.num_kv_blocks
    return EngineModel.of_profile(
        _speed(config, pool),
        blocks * flags.block_size if blocks else default.kv_tokens,
        flags.max_num_seqs,
        flags.max_num_batched_tokens,
        flags.block_size,
    )


def check_profile_model(path: Path, subject: Mapping[str, object], model: str) -> None:
    """InvalidSetting when a profile says that it is another model's."""
    told = subject.get("model")
    if isinstance(told, str) and _short(told) != _short(model):
        remedy = f"is of {told}, and the fleet serves {model}: measure that, or leave it out"
        raise InvalidSetting("profile", str(path), remedy)


def _check_promise(slo: SloConfig, pool: str, speed: Profile) -> None:
    """A worker that has nothing else to do is as fast as any number of workers can be."""
    alone = {
        "ttft_ms": speed.step_ms + speed.prefill_ms_per_token,
        "itl_ms": speed.step_ms + speed.decode_ms_per_seq,
    }
    for name, least_ms in alone.items():
        if getattr(slo, name) < least_ms:
            remedy = f"cannot be kept by {pool}: one request alone takes {least_ms:.4g} ms"
            raise InvalidSetting(f"planner.slo.{name}", getattr(slo, name), remedy)


def _speed(config: Config, pool: str) -> Profile:
    own, alike = config.pools[pool], _alike(config, pool)
    profile = next(filter(None, (config.pools[name].profile for name in alike)), None)
    if profile is None:
        return own.mock or Profile()
    path = Path(profile)
    check_profile_model(path, subject_of(path), config.model)
    return load_profile(path)


def _alike(config: Config, pool: str) -> list[str]:
    """Return the pools of a pool's class, which are equally fast, itself first."""
    own = config.pools[pool].worker_class
    return [
        pool,
        *(name for name, each in config.pools.items() if own and each.worker_class == own),
    ]


def _limits(config: Config, pool: str) -> PoolLimits:
    """Return a pool's bounds; its GPUs are those that Ray gives it, where it has some."""
    own = config.pools[pool]
    limits = config.planner.pools.get(pool)
    if limits is None:
        limits = PoolLimits(min_replicas=own.replicas, max_replicas=own.replicas)
    return replace(limits, gpus_per_replica=own.num_gpus) if own.num_gpus else limits


def _short(model: str) -> str:
    """Return a model's name without its folder, its owner, or its file's ending."""
    name = model.rstrip("/").rpartition("/")[2]
    return name.removesuffix(".gguf").lower()
