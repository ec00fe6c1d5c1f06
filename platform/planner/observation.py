"""What the planner sees: one window of time, as plain values.

Whoever has the frontends and the workers fills it in: a service, the digital twin, a test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stafette.router.performance import StepReport
from stafette.workers.service.standing import Role


@dataclass(frozen=True, slots=True)
class Started:
    """A request that has come in."""

    prompt_tokens: int
    cached_tokens: int = 0  # of them, that need not be computed


@dataclass(frozen=True, slots=True)
class Finished:
    """A request that has been answered."""

    prompt_tokens: int
    output_tokens: int
    ttft_ms: float
    itl_ms: float | None = None  # its mean; None: a single token
    wait_ms: float | None = None  # until a worker took it up; None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A worker that takes requests, or has done so."""

    name: str
    pool: str
    role: Role
    draining: bool = False
    age_s: float = 0.0
    running: int = 0
    waiting: int = 0
    queued_tokens: int = 0  # of prompts, not computed yet
    used_kv_tokens: int = 0
    steps: Sequence[StepReport] = ()  # of this window, or some of them


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """The replicas of a pool, as whoever runs them counts them."""

    target: int  # what was last asked for
    ready: int
    starting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What happened in the `window_s` until `at`. Lists may be samples, `arrivals` not."""

    at: float  # seconds, on a clock that never goes back
    window_s: float
    arrivals: int
    started: Sequence[Started] = ()
    finished: Sequence[Finished] = ()
    waiting: int = 0  # requests that no worker has yet
    workers: Sequence[WorkerState] = ()
    pools: Mapping[str, PoolState] = field(default_factory=dict)
