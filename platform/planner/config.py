"""What the planner is told: the promise to keep, the budget, what each pool may be."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stafette.platform.frontend.errors import InvalidSetting

ScalerName = Literal["external", "policy"]


def _check_above(name: str, value: float, bound: float) -> None:
    if not bound < value < math.inf:  # a NaN fails as well
        raise InvalidSetting(name, value, f"must be a number above {bound:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SloConfig:
    """The share of requests that must be at least as fast as the limits say."""

    ttft_ms: float = 1_000.0  # until the first token
    ttft_percentile: float = 95.0
    itl_ms: float = 50.0  # between two tokens, a request's mean
    itl_percentile: float = 95.0

    def __post_init__(self) -> None:
        for name in ("ttft_ms", "itl_ms"):
            _check_above(f"slo.{name}", getattr(self, name), 0.0)
        for name in ("ttft_percentile", "itl_percentile"):
            value = getattr(self, name)
            if not 0 < value < 100:
                raise InvalidSetting(f"slo.{name}", value, "must be above 0 and below 100")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """How many replicas a pool may have, and what one costs."""

    min_replicas: int = 1  # 0: none while nobody asks
    max_replicas: int = 8
    gpus_per_replica: float = 1.0
    cost_per_hour: float = 1.0  # of one replica, in whatever currency
    startup_s: float = 60.0  # from the wish until it takes requests; learned from then on
    startup_limit_s: float = 300.0  # who is not there by then is not waited for

    def __post_init__(self) -> None:
        if self.min_replicas < 0:
            raise InvalidSetting("min_replicas", self.min_replicas, "must be at least 0")
        if self.max_replicas < self.min_replicas:
            remedy = f"must be at least min_replicas, which is {self.min_replicas}"
            raise InvalidSetting("max_replicas", self.max_replicas, remedy)
        for name in ("gpus_per_replica", "cost_per_hour"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidSetting(name, getattr(self, name), "must be a number of at least 0")
        for name in ("startup_s", "startup_limit_s"):
            _check_above(name, getattr(self, name), 0.0)
        if self.startup_limit_s < self.startup_s:
            remedy = f"must be at least startup_s, which is {self.startup_s:g}"
            raise InvalidSetting("startup_limit_s", self.startup_limit_s, remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerConfig:
    mode: Literal["off", "dry_run", "on"] = "off"  # dry_run: plans are told, and not carried out
    scaler: ScalerName = "external"  # how Ray Serve is asked: its external scaler, or a policy
    slo: SloConfig = SloConfig()
    max_gpus: float | None = None  # of all pools together; None: as many as the pools may have
    pools: Mapping[str, PoolLimits] = field(default_factory=dict)  # the others keep their size
    flips: bool = True  # may workers change their role
    interval_s: float = 1.0  # between two looks; roles change at this pace
    replicas_interval_s: float = 5.0  # between two decisions on replicas
    bin_s: float = 10.0  # of the series that is forecast
    quantile: float = 0.95  # of what may come, that there must be room for
    # A smaller need must last so long before replicas go; None: one and a half start-up times.
    hold_down_s: float | None = None
    idle_s: float = 300.0  # without any request, before pools may be emptied
    drain_backlog_s: float = 30.0  # in which what has piled up is worked off
    promise_window_s: float = 3_600.0  # over which the share of late requests is counted
    plans_kept: int = 512
    num_cpus: float = 0.0  # of its process on a running fleet, for Ray

    def __post_init__(self) -> None:
        for name in ("interval_s", "replicas_interval_s", "bin_s", "idle_s"):
            _check_above(name, getattr(self, name), 0.0)
        if self.hold_down_s is not None:
            _check_above("hold_down_s", self.hold_down_s, 0.0)
        for name in ("drain_backlog_s", "promise_window_s"):
            _check_above(name, getattr(self, name), 0.0)
        if not 0.5 <= self.quantile < 1:
            raise InvalidSetting("quantile", self.quantile, "must be at least 0.5 and below 1")
        if not self.num_cpus >= 0:
            raise InvalidSetting("num_cpus", self.num_cpus, "must be at least 0")
        if self.plans_kept < 1:
            raise InvalidSetting("plans_kept", self.plans_kept, "must be at least 1")
        if self.max_gpus is not None:
            self._check_budget(self.max_gpus)

    def _check_budget(self, max_gpus: float) -> None:
        _check_above("max_gpus", max_gpus, 0.0)
        least = sum(p.min_replicas * p.gpus_per_replica for p in self.pools.values())
        if least > max_gpus:
            remedy = f"is less than the pools' min_replicas take, {least:g}: raise it or lower them"
            raise InvalidSetting("max_gpus", max_gpus, remedy)
