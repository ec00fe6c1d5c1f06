"""What the tree of settings says of one pool of workers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

from stafette.platform.config_reading import Part, PartOf
from stafette.platform.frontend.errors import InvalidSetting
from stafette.workers.config import EngineConfig
from stafette.workers.mocker.speed_profile import Profile
from stafette.workers.service.standing import Role

ENGINE = PartOf(EngineConfig, "model", "prefix_cache_key", "share_kv_memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """Workers of one kind, each a replica of one Serve deployment."""

    role: Role | None = None  # None: by the pool's name
    replicas: int = 1
    num_cpus: float = 1.0  # of each replica, for Ray; a CPU engine runs as many threads
    num_gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)  # Ray's own, by name
    nodes: int = 1  # that each replica's ranks, and all of the above, are spread over evenly
    env: Mapping[str, str] = field(default_factory=dict)  # of the process
    worker_class: str = ""  # those of one class are equally fast; "": the pool's name
    drain_timeout_s: float = 60.0  # for what is under way when a replica is stopped
    profile: str | None = None  # a JSON file of the workers' speed, for the planner
    mock: Profile | None = None  # workers without a model, and how fast they pretend to be
    engine: Annotated[Part[EngineConfig], ENGINE] = ENGINE.empty()  # over the common ones

    def __post_init__(self) -> None:
        for name in ("replicas", "num_cpus", "num_gpus"):
            if not getattr(self, name) >= 0:
                raise InvalidSetting(name, getattr(self, name), "must be at least 0")
        if not self.drain_timeout_s > 0:
            raise InvalidSetting("drain_timeout_s", self.drain_timeout_s, "must be above 0")
        if self.nodes < 1:
            raise InvalidSetting("nodes", self.nodes, "must be at least 1")

    @property
    def on_each_node(self) -> "PoolConfig":
        """Return what a replica takes of one node."""
        n = self.nodes
        resources = {name: value / n for name, value in self.resources.items()}
        return replace(
            self,
            num_cpus=self.num_cpus / n,
            num_gpus=self.num_gpus / n,
            resources=resources,
            nodes=1,
        )

    @property
    def bundle(self) -> dict[str, float]:
        """Return it as Ray's placement groups count it."""
        taken = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: value for name, value in taken.items() if value}
