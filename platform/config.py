"""The one tree of settings: what a YAML file, the environment and the command line may say.

Only this module, and what it calls, reads files of settings and the environment. Each part of the
tree is the config of the code that uses it, so that a default stands in one place.
"""

import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from stafette.kvtransfer.agent_config import AgentConfig
from stafette.kvtransfer.connectors.p2p.config import P2pConfig
from stafette.kvtransfer.directory.config import DirectoryConfig
from stafette.kvtransfer.directory.etcd.config import EtcdConfig
from stafette.kvtransfer.tiers.config import TiersConfig
from stafette.platform.config_checks import check_mocks, check_planner, check_ranks
from stafette.platform.config_reading import Part, PartOf, Reader, Wrong
from stafette.platform.config_sources import (
    Settings,
    from_file,
    from_mapping,
    overlay_assignments,
    overlay_environment,
)
from stafette.platform.frontend.config import FrontendConfig
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.frontend.keys import ApiKey, read_key_file, read_keys
from stafette.platform.observability.config import MetricsConfig, TracingConfig
from stafette.platform.planner.config import PlannerConfig
from stafette.platform.pool_config import ENGINE, PoolConfig
from stafette.platform.serving.config import DispatchConfig
from stafette.router.router import RouterConfig
from stafette.workers.config import EMBEDDED_MODEL, EngineConfig
from stafette.workers.errors import ConfigError
from stafette.workers.service.config import MIN_TOKEN_BYTES, ServiceConfig
from stafette.workers.service.standing import Role

TOKEN_VARIABLE = "STAFETTE_TOKEN"
MADE_TOKEN = "made for this start"  # the origin of a token that nobody has set
API_KEYS_VARIABLE = "STAFETTE_API_KEYS"
_ROLES: Mapping[str, Role] = {"prefill": "prefill", "decode": "decode", "aggregated": "both"}
_POOL_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_STAND_IN = "any"  # a tree must have a pool that decodes
_OF_WORKERS = (
    "name",
    "model",
    "lora_modules",
    "log_level",
    "metrics",
    "tracing",
    "cluster",
    "engine",
    "service",
    "transfer",
    "p2p",
    "tiers",
    "discovery",
)
_OF_FRONTENDS = (
    "name",
    "model",
    "lora_modules",
    "log_level",
    "metrics",
    "tracing",
    "cluster",
    "frontend",
    "router",
    "dispatch",
    "service",
    "discovery",
)
_OF_PLANNER = (
    "name",
    "model",
    "log_level",
    "metrics",
    "cluster",
    "engine",
    "pools",
    "service",
    "discovery",
    "planner",
)
_DISPATCH = PartOf(DispatchConfig, "model", "loras", "wakes")
_ETCD = PartOf(EtcdConfig, "ca_cert", "client_cert", "client_key")
_SERVICE = PartOf(
    ServiceConfig,
    *("token", "host", "port", "advertised_host", "tls_key", "tls_certificate", "tls_authority"),
)
_TRANSFER = PartOf(
    AgentConfig,
    *("name", "token", "host", "port", "advertised_host", "allow_wildcard", "compatibility"),
    *("tls_server", "tls_client", "transport_options"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """What every process of this cluster shares."""

    token: str = field(default="", repr=False)  # who does not know it is refused; "": a new one
    token_file: str | None = None  # holds the token instead
    host: str = "auto"  # that workers listen on; auto: their node's address, as Ray knows it

    def __post_init__(self) -> None:
        if self.token and self.token_file:
            remedy = "stands beside cluster.token: keep one of them"
            raise InvalidSetting("cluster.token_file", self.token_file, remedy)
        if self.token and len(self.token.encode()) < MIN_TOKEN_BYTES:
            size, remedy = len(self.token.encode()), f"must have at least {MIN_TOKEN_BYTES}"
            raise InvalidSetting("cluster.token", f"{size} bytes", remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendPool(FrontendConfig):
    """The API's settings, and how many processes serve it; those of a host share its port."""

    replicas: int = 1
    num_cpus: float = 0.0
    num_gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    ingress: Literal["own", "serve"] = "own"  # serve: behind Ray Serve's proxies

    def __post_init__(self) -> None:
        FrontendConfig.__post_init__(self)
        if self.replicas < 1:
            raise InvalidSetting("replicas", self.replicas, "must be at least 1")
        if self.replicas > 1 and self.port == 0 and self.ingress == "own":
            raise InvalidSetting("port", 0, "must be one that all replicas share")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryConfig:
    """How frontends learn which workers there are."""

    backend: Literal["serve", "etcd"] = "serve"
    directory: DirectoryConfig = DirectoryConfig()
    etcd: Annotated[Part[EtcdConfig], _ETCD] = _ETCD.empty()


def _default_pools() -> dict[str, PoolConfig]:
    return {"prefill": PoolConfig(), "decode": PoolConfig()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    name: str = "stafette"  # of the Serve application
    model: str = EMBEDDED_MODEL  # a directory, a .gguf file, or the embedded model's name
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    start_timeout_s: float = 900.0  # of `stafette serve`, until all is ready
    # PEFT adapters by the name that requests give, each a directory on every node.
    lora_modules: Mapping[str, str] = field(default_factory=dict)
    cluster: ClusterConfig = ClusterConfig()
    engine: Annotated[Part[EngineConfig], ENGINE] = ENGINE.empty()  # of every pool
    pools: Mapping[str, PoolConfig] = field(default_factory=_default_pools)
    frontend: FrontendPool = FrontendPool()
    router: RouterConfig = RouterConfig()
    dispatch: Annotated[Part[DispatchConfig], _DISPATCH] = _DISPATCH.empty()
    service: Annotated[Part[ServiceConfig], _SERVICE] = _SERVICE.empty()
    transfer: Annotated[Part[AgentConfig], _TRANSFER] = _TRANSFER.empty()
    p2p: P2pConfig = P2pConfig()
    tiers: TiersConfig | None = None  # of each worker; a disk's folder is shared by those of a host
    discovery: DiscoveryConfig = DiscoveryConfig()
    metrics: MetricsConfig = MetricsConfig()
    tracing: TracingConfig = TracingConfig()
    planner: PlannerConfig = PlannerConfig()

    def __post_init__(self) -> None:
        for name, pool in self.pools.items():
            self._check_pool(name, pool)
        if not self.start_timeout_s > 0:
            raise InvalidSetting("start_timeout_s", self.start_timeout_s, "must be above 0")
        self._check_roles()
        self._check_loras()
        check_planner(self)
        check_mocks(self)
        self._check_parts()
        sizes = {name: self.engine_flags(name).block_size for name in self.pools}
        if len(set(sizes.values())) > 1:
            remedy = "must be the same in all pools: they hand over blocks of that size"
            raise InvalidSetting("engine.block_size", sizes, remedy)

    def engine_flags(self, pool: str) -> EngineConfig:
        """Return the flags of a pool's engines: the common ones, and its own over them."""
        own = self.pools[pool]
        flags = {**self.engine.given, **own.engine.given}
        on_cpu = own.num_gpus == 0 and flags.get("device", "auto") != "cuda"
        if on_cpu and own.num_cpus >= 1:
            flags.setdefault("num_threads", int(own.num_cpus))
        if self.lora_modules:
            flags = {"max_loras": len(self.lora_modules)} | flags | {"enable_lora": True}
        return EngineConfig.of(model=self.model, **flags)

    def role(self, pool: str) -> Role:
        return self.pools[pool].role or _ROLES[pool]

    def for_workers(self, pool: str) -> "Config":
        """Return what the workers of a pool need to know, and no more."""
        own = replace(self.pools[pool], replicas=1, role=self.role(pool), profile=None)
        return Config(
            **{name: getattr(self, name) for name in _OF_WORKERS},
            frontend=FrontendPool(served_model_name=(self.served_name,)),
            pools={pool: own, _STAND_IN: replace(own, role="both")},
        )

    def for_frontends(self) -> "Config":
        """Return what frontends need to know, and no more."""
        flags = [self.engine_flags(pool) for pool in self.pools]
        known = {name: getattr(flags[0], name) for name in ("tokenizer", "block_size")}
        lengths = [each.max_model_len for each in flags]
        if None not in lengths:  # else the workers tell it
            known["max_model_len"] = min(filter(None, lengths))
        wakes = {"wakes": self.planner.mode == "on"}
        shared = {name: getattr(self, name) for name in _OF_FRONTENDS}
        shared["dispatch"] = replace(self.dispatch, given={**self.dispatch.given, **wakes})
        return Config(
            **shared,
            engine=replace(self.engine, given=known),
            pools={_STAND_IN: PoolConfig(role="both")},
        )

    def for_planner(self) -> "Config":
        """Return what the planner needs to know, and no more: not the sizes that it decides."""
        shared = {name: getattr(self, name) for name in _OF_PLANNER}
        pools = dict(self.pools)
        for name, limits in self.planner.pools.items():
            pools[name] = replace(pools[name], replicas=limits.max_replicas)
        return Config(**{**shared, "pools": pools})

    def follows_policy(self, pool: str) -> bool:
        """Return whether a policy of Ray Serve's autoscaler gives this pool its size."""
        planner = self.planner
        return planner.mode == "on" and planner.scaler == "policy" and pool in planner.pools

    @property
    def served_name(self) -> str:
        """Return the model's name, as answers and metrics show it."""
        names = self.frontend.served_model_name
        return names[0] if names else Path(self.model).name or self.model

    @property
    def token(self) -> bytes:
        return self.cluster.token.encode()

    def _check_pool(self, name: str, pool: PoolConfig) -> None:
        if not _POOL_NAME.fullmatch(name):
            remedy = "must be lower-case letters, digits and _, 32 at most"
            raise InvalidSetting("pools", name, remedy)
        if pool.role is None and name not in _ROLES:
            known = ", ".join(_ROLES)
            remedy = f"must be given: prefill, decode or both (only {known} tell it by their name)"
            raise InvalidSetting(f"pools.{name}.role", None, remedy)
        try:
            flags = self.engine_flags(name)
        except ConfigError as error:
            where = f"pools.{name}.engine.{error.field}"
            raise InvalidSetting(where, error.value, error.remedy) from None
        check_ranks(self, name, flags.tensor_parallel_size)

    def _check_parts(self) -> None:
        """Make once what is made where it is used: a wrong value is known before any start."""
        token = bytes(MIN_TOKEN_BYTES)
        made: dict[str, Callable[[], object]] = {
            "service": lambda: self.service.make(token=token),
            "transfer": lambda: self.transfer.make(name="worker", token=token),
            "dispatch": lambda: self.dispatch.make(model=self.model),
            "discovery.etcd": lambda: self.discovery.etcd.make(),
        }
        for name, make in made.items():
            try:
                make()
            except Wrong as error:
                last = error.field.rpartition(".")[2]
                raise InvalidSetting(f"{name}.{last}", error.value, error.remedy) from None

    def _check_loras(self) -> None:
        served = self.frontend.served_model_name or (self.model,)
        for name in self.lora_modules:
            if name in served:
                remedy = "is the model's own name: give the adapter another one"
                raise InvalidSetting("lora_modules", name, remedy)

    def _check_roles(self) -> None:
        roles = {self.role(name) for name in self.pools}
        if not roles & {"decode", "both"}:
            remedy = "must have one that decodes: decode, or aggregated"
            raise InvalidSetting("pools", sorted(self.pools), remedy)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A config, and what it was made of."""

    config: Config
    settings: Settings
    token_origin: str


def load(
    path: Path | None,
    assignments: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Loaded:
    """Read a file, the environment over it, and what the command line sets over both."""
    settings = from_file(path) if path is not None else Settings()
    return _finish(settings, list(assignments), environment)


def load_mapping(
    values: Mapping[str, Any], origin: str, environment: Mapping[str, str] | None = None
) -> Loaded:
    """Read what came as data, such as the arguments of a Serve application."""
    return _finish(from_mapping(values, origin), [], environment)


def _finish(
    settings: Settings, assignments: list[str], environment: Mapping[str, str] | None
) -> Loaded:
    environment = os.environ if environment is None else environment
    overlay_environment(settings, environment)
    overlay_assignments(settings, assignments)
    config = Reader(settings).read(Config)
    token, origin = _token(config.cluster, environment)
    cluster = replace(config.cluster, token=token, token_file=None)
    return Loaded(replace(config, cluster=cluster), settings, origin)


def _token(cluster: ClusterConfig, environment: Mapping[str, str]) -> tuple[str, str]:
    """Find the cluster's secret and say where; without any, make one, good for one start."""
    if cluster.token:
        return cluster.token, "cluster.token"
    if cluster.token_file is not None:
        return _read_secret(Path(cluster.token_file)), f"in {cluster.token_file}"
    if given := environment.get(TOKEN_VARIABLE, ""):
        return given, TOKEN_VARIABLE
    return secrets.token_hex(), MADE_TOKEN


def _read_secret(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        remedy = f"cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}"
        raise InvalidSetting("cluster.token_file", str(path), remedy) from None


def api_keys(
    config: FrontendConfig, environment: Mapping[str, str] | None = None
) -> tuple[ApiKey, ...] | None:
    """Return the keys of the file, or else those of the environment; None: there are none."""
    if config.api_keys is not None:
        return read_key_file(config.api_keys)
    given = (os.environ if environment is None else environment).get(API_KEYS_VARIABLE)
    if given is None:
        return None
    keys = read_keys(given)
    if not keys:
        raise InvalidSetting(API_KEYS_VARIABLE, given, "holds no key: write NAME KEY, or unset it")
    return keys


def api_settings(frontend: FrontendPool) -> FrontendConfig:
    """Return what one process of the API is told."""
    return FrontendConfig(**{f.name: getattr(frontend, f.name) for f in fields(FrontendConfig)})
