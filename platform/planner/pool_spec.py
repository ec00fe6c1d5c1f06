"""A pool as the planner knows it, whatever runs its replicas."""

from dataclasses import dataclass

from stafette.platform.planner.config import PoolLimits
from stafette.platform.planner.engine_model import EngineModel
from stafette.workers.service.standing import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    role: Role  # in which its workers start
    limits: PoolLimits = PoolLimits()
    worker_class: str = ""  # workers of one class are equally fast, and may flip
    model: EngineModel = EngineModel()  # until their steps tell
