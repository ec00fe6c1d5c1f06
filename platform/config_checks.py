"""What parts of the one tree of settings must not say of each other."""

from typing import TYPE_CHECKING

from stafette.platform.frontend.errors import InvalidSetting
from stafette.workers.errors import ConfigError
from stafette.workers.mocker.config import MockerConfig

if TYPE_CHECKING:
    from stafette.platform.config import Config


def check_planner(config: "Config") -> None:
    planned = config.planner.pools
    for name in planned:
        if name not in config.pools:
            remedy = f"is no pool; there are: {', '.join(config.pools)}"
            raise InvalidSetting("planner.pools", name, remedy)
    if config.planner.mode != "on":
        _check_begun(config)
    if config.planner.mode == "off":
        return
    if not planned:
        remedy = f"must name those whose size is planned, of {', '.join(config.pools)}"
        raise InvalidSetting("planner.pools", "{}", remedy)
    for name, limits in planned.items():
        replicas = config.pools[name].replicas
        if not limits.min_replicas <= replicas <= limits.max_replicas:
            bounds = f"{limits.min_replicas}..{limits.max_replicas}"
            remedy = f"must be in {bounds}, the bounds of planner.pools.{name}"
            raise InvalidSetting(f"pools.{name}.replicas", replicas, remedy)
    _check_sleep(config)


def _check_begun(config: "Config") -> None:
    for name, pool in config.pools.items():
        if pool.replicas == 0:
            remedy = "must be at least 1 without a planner that is on: nobody would start another"
            raise InvalidSetting(f"pools.{name}.replicas", 0, remedy)


def check_ranks(config: "Config", name: str, ranks: int) -> None:
    """Refuse ranks that cannot be placed, or whose blocks could not be kept."""
    pool = config.pools[name]
    if config.tiers is not None and ranks > 1:
        remedy = "must be 1 where there are tiers: they hold the blocks of one rank"
        raise InvalidSetting(f"pools.{name}.engine.tensor_parallel_size", ranks, remedy)
    if pool.num_gpus and ranks > 1 and pool.num_gpus != ranks:
        remedy = f"must be {ranks}: each rank of tensor_parallel_size has a GPU of its own"
        raise InvalidSetting(f"pools.{name}.num_gpus", pool.num_gpus, remedy)
    if pool.nodes > 1 and ranks % pool.nodes:
        remedy = f"must be a multiple of pools.{name}.nodes, {pool.nodes}, which share its ranks"
        raise InvalidSetting(f"pools.{name}.engine.tensor_parallel_size", ranks, remedy)
    if pool.nodes > 1 and not (pool.num_cpus or pool.num_gpus):
        remedy = "is above 1: give num_cpus or num_gpus, which hold the places there"
        raise InvalidSetting(f"pools.{name}.nodes", pool.nodes, remedy)


def check_mocks(config: "Config") -> None:
    mocks = [name for name, pool in config.pools.items() if pool.mock is not None]
    if not mocks:
        return
    for name, pool in config.pools.items():
        if pool.mock is None:
            remedy = f"must be given, as in {mocks[0]}: only mock workers take KV from mock workers"
            raise InvalidSetting(f"pools.{name}.mock", None, remedy)
        try:
            flags = config.engine_flags(name)
            MockerConfig(name=name, role=config.role(name), engine=flags, profile=pool.mock)
        except ConfigError as error:
            where = f"pools.{name}.engine.{error.field}"
            raise InvalidSetting(where, error.value, error.remedy) from None
    if config.tiers is not None:
        raise InvalidSetting("tiers", "given", "must be left out: mock workers have none")


def _check_sleep(config: "Config") -> None:
    """Refuse a fleet without workers whose frontends would have nobody to ask for their limits."""
    least = [
        config.planner.pools[name].min_replicas if name in config.planner.pools else pool.replicas
        for name, pool in config.pools.items()
    ]
    lengths = [config.engine_flags(name).max_model_len for name in config.pools]
    if not any(least) and None in lengths:
        remedy = "must be given where all pools may be empty: there is no worker to tell it"
        raise InvalidSetting("engine.max_model_len", None, remedy)
