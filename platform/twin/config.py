"""The description of a simulation: one YAML file, read as strictly as a deployment's.

workload:  what is asked of the fleet        pools:   its workers, by role, and how fast they are
slo:       what was promised                 faults:  what goes wrong, and when
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from stafette.kvtransfer.tiers.config import TiersConfig
from stafette.platform.config_reading import Part, PartOf, Reader
from stafette.platform.config_sources import Settings, from_file, overlay_assignments
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.planner.config import PlannerConfig, PoolLimits, SloConfig
from stafette.platform.profiling.document import load_profile
from stafette.platform.serving.config import DispatchConfig
from stafette.platform.twin.prompts import VOCABULARY
from stafette.platform.twin.workloads.config import WorkloadConfig
from stafette.router.performance import Performance
from stafette.router.router import RouterConfig
from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError
from stafette.workers.mocker.config import MockerConfig
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.mocker.tier_speed import TierSpeed
from stafette.workers.service.standing import Role

MODEL = "twin"
KEY = "twin"  # of the block hashes
_ROLES: Mapping[str, Role] = {"prefill": "prefill", "decode": "decode"}
_ENGINE = PartOf(EngineConfig, "model", "prefix_cache_key", "share_kv_memory")
_DISPATCH = PartOf(DispatchConfig, "model")
_FLAGS: Mapping[str, object] = {"num_kv_blocks": 16_384, "max_num_batched_tokens": 8_192}
_MOST_MODEL_LEN = 131_072
_LEARNED = (
    "step_ms",
    "prefill_ms_per_token",
    "prefill_ms_per_pair",
    "decode_ms_per_seq",
    "decode_ms_per_kv_token",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinPool:
    """Workers of one kind."""

    role: Role | None = None  # None: by the pool's name; any other name: both
    replicas: int = 1  # at the beginning
    worker_class: str = ""  # those of one class are equally fast; "": the pool's name
    profile: str | None = None  # a JSON file of their speed, beside the description
    speed: Profile | None = None  # the same, in place
    limits: PoolLimits = PoolLimits()  # how many a planner may have, what each costs, its start
    engine: Annotated[Part[EngineConfig], _ENGINE] = _ENGINE.empty()  # over the common ones

    def __post_init__(self) -> None:
        if self.replicas < 0:
            raise InvalidSetting("replicas", self.replicas, "must be at least 0")
        if self.profile is not None and self.speed is not None:
            raise InvalidSetting("profile", self.profile, "stands beside speed: keep one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultConfig:
    """One thing that goes wrong: exactly one of kill, slow and start_s."""

    at_s: float
    kill: str | None = None  # a worker, or a pool: then its first one
    noticed_s: float = 0.0  # until frontends know of the kill
    slow: str | None = None  # a worker or a pool
    factor: float = 3.0  # by which its steps are longer
    for_s: float | None = None  # None: to the end
    start_s: float | None = None  # how long starts take from then on
    pool: str | None = None  # of start_s; None: all

    def __post_init__(self) -> None:
        for name in ("at_s", "noticed_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidSetting(name, getattr(self, name), "must be a number of at least 0")
        for name in ("factor", "for_s", "start_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidSetting(name, value, "must be a number above 0")
        given = [name for name in ("kill", "slow", "start_s") if getattr(self, name) is not None]
        if len(given) != 1:
            told = " and ".join(given) or None
            raise InvalidSetting("fault", told, "must be exactly one of kill, slow and start_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinConfig:
    workload: WorkloadConfig
    pools: Mapping[str, TwinPool]
    slo: SloConfig = SloConfig()
    engine: Annotated[Part[EngineConfig], _ENGINE] = _ENGINE.empty()  # of every pool
    tiers: TiersConfig | None = None  # of each worker, as a deployment's; no file is touched
    tier_speed: TierSpeed = TierSpeed()
    router: RouterConfig = RouterConfig()
    dispatch: Annotated[Part[DispatchConfig], _DISPATCH] = _DISPATCH.empty()
    faults: tuple[FaultConfig, ...] = ()
    planner: PlannerConfig = PlannerConfig()  # its mode says whether it decides
    tick_s: float = 1.0  # in which a scaler is asked
    beat_s: float = 1.0  # in which workers report their load
    news_s: float = 0.002  # until routers hear of a block
    frontend_s: float = 0.0  # from a request's arrival until it is placed
    bin_s: float = 10.0  # of the timelines

    def __post_init__(self) -> None:
        if not self.pools:
            raise InvalidSetting("pools", "{}", "must hold at least one pool")
        for name in ("tick_s", "beat_s", "bin_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidSetting(name, getattr(self, name), "must be a number above 0")
        for name in ("news_s", "frontend_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidSetting(name, getattr(self, name), "must be a number of at least 0")
        sizes = {name: self.engine_flags(name).block_size for name in self.pools}
        if len(set(sizes.values())) > 1:
            remedy = "must be the same in all pools: they hand over blocks of that size"
            raise InvalidSetting("engine.block_size", sizes, remedy)
        for name in self.pools:
            self._check_worker(name)
        self._check_faults()

    @property
    def block_size(self) -> int:
        return self.engine_flags(next(iter(self.pools))).block_size

    def role(self, pool: str) -> Role:
        return self.pools[pool].role or _ROLES.get(pool, "both")

    def worker_class(self, pool: str) -> str:
        return self.pools[pool].worker_class or pool

    def engine_flags(self, pool: str) -> EngineConfig:
        flags = {**_FLAGS, **self.engine.given, **self.pools[pool].engine.given}
        flags.setdefault("max_model_len", _model_len(flags))
        return EngineConfig.of(model=MODEL, prefix_cache_key=KEY, **flags)

    def worker(self, pool: str, name: str) -> MockerConfig:
        """Return what a worker of a pool is made of."""
        return MockerConfig(
            name=name,
            role=self.role(pool),
            engine=self.engine_flags(pool),
            profile=self.pools[pool].speed or Profile(),
            vocab_size=VOCABULARY,
            tiers=self.tiers,
            tier_speed=self.tier_speed,
            worker_class=self.worker_class(pool),
        )

    def router_config(self) -> RouterConfig:
        """Return the router's config: it knows the speed of each class beforehand."""
        known = {
            self.worker_class(name): prior(pool.speed or Profile(), self.engine_flags(name))
            for name, pool in self.pools.items()
        }
        return replace(self.router, priors={**known, **self.router.priors})

    def dispatch_config(self) -> DispatchConfig:
        return self.dispatch.make(model=MODEL)

    def _check_worker(self, pool: str) -> None:
        try:
            self.worker(pool, pool)
            self.dispatch_config()
        except ConfigError as error:
            raise InvalidSetting(f"pools.{pool}.{error.field}", error.value, error.remedy) from None

    def _check_faults(self) -> None:
        for number, fault in enumerate(self.faults):
            whom = fault.kill or fault.slow or fault.pool
            if whom is not None and whom.rpartition("-")[0] not in self.pools:
                if whom not in self.pools:
                    told = ", ".join(f"{name}, {name}-1" for name in self.pools)
                    remedy = f"must be a pool or one of its workers, as {told}"
                    raise InvalidSetting(f"faults.{number}", whom, remedy)


def prior(profile: Profile, engine: EngineConfig) -> Performance:
    """Return what the router is to know of such workers' speed before they work."""
    known = {name: getattr(profile, name) for name in _LEARNED}
    return Performance(**known, max_num_batched_tokens=engine.max_num_batched_tokens)


def read(path: Path, assignments: list[str] | None = None) -> TwinConfig:
    """Read a description; InvalidSetting names what is wrong, and where it stands."""
    settings = from_file(path)
    overlay_assignments(settings, assignments or [])
    return with_profiles(_read(settings), path.parent)


def with_profiles(config: TwinConfig, beside: Path) -> TwinConfig:
    """Return it with the profiles that it names read."""
    pools = dict(config.pools)
    for name, pool in pools.items():
        if pool.profile is not None:
            speed = load_profile(beside / pool.profile)
            pools[name] = replace(pool, profile=None, speed=speed)
    return replace(config, pools=pools)


def _read(settings: Settings) -> TwinConfig:
    for name in ("workload", "pools"):
        if name not in settings.values:
            raise InvalidSetting(name, None, "must be given")
    return Reader(settings).read(TwinConfig)


def _model_len(flags: Mapping[str, object]) -> int:
    blocks, size = flags["num_kv_blocks"], flags.get("block_size", 16)
    if not isinstance(blocks, int) or not isinstance(size, int):
        return _MOST_MODEL_LEN  # the engine's config says what is wrong with it
    return max(1, min(_MOST_MODEL_LEN, blocks * size))
