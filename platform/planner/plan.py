"""What the planner wants, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stafette.workers.service.standing import Role


@dataclass(frozen=True, slots=True)
class RoleFlip:
    worker: str
    before: Role
    role: Role


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that this plan cannot keep."""

    target: str  # "ttft", "itl"
    limit_ms: float
    expected_ms: float  # at the promised percentile; inf: what comes in exceeds what goes out
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Numbers by name, as the decision used them."""

    observed: Mapping[str, float] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)
    capacity: Mapping[str, float] = field(default_factory=dict)
    needed: Mapping[str, int] = field(default_factory=dict)  # workers by role, before any limit
    decided_by: str = ""  # the limit that made it so
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole wish, not a difference: carrying it out twice changes nothing."""

    at: float
    replicas: Mapping[str, int]  # by pool
    flips: Sequence[RoleFlip] = ()
    release: Sequence[str] = ()  # workers to drain, that are to go with the replicas
    violations: Sequence[Violation] = ()
    held: str | None = None  # why nothing was decided, and all stays as it is
    explanation: Explanation = Explanation()
