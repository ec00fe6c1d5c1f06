"""What is to be placed, and what it can be placed on, as plain values."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from stafette.router.errors import InvalidValue
from stafette.router.index import NOTHING, CacheSpec, Overlap
from stafette.router.load import IDLE, LoadView
from stafette.router.performance import Performance

Role = Literal["prefill", "decode", "both"]
_ROLES = get_args(Role)
_TYPICAL_PERFORMANCE = Performance()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    request_id: str
    chain: bytes = b""  # of its prompt's full blocks
    prompt_tokens: int
    expected_output_tokens: int | None = None  # None: as many as others had of late
    model: str = ""
    lora: str = ""
    tenant: str = ""
    session: str = ""
    priority: int = 0  # the higher the sooner
    deadline_s: float | None = None  # for its first token, from its arrival
    tolerations: frozenset[str] = frozenset()  # taints that do not matter to it
    pinned: str | None = None  # the only target that will do

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise InvalidValue("prompt_tokens", self.prompt_tokens, "must be at least 1")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise InvalidValue("deadline_s", self.deadline_s, "must be above 0, or None")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What the router knows of a target from its registration."""

    cache: CacheSpec
    role: Role = "both"
    worker_class: str = ""  # those of one class are equally fast
    loras: frozenset[str] | None = None  # that it can serve; None: any
    taints: frozenset[str] = frozenset()
    host: str = ""
    rack: str = ""
    total_blocks: int = 0  # 0: not known
    max_requests: int = 0  # 0: no bound
    block_bytes: int = 2 << 20

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise InvalidValue("role", self.role, f"must be one of {', '.join(_ROLES)}")
        for name in ("total_blocks", "max_requests", "block_bytes"):
            if getattr(self, name) < 0:
                raise InvalidValue(name, getattr(self, name), "must be at least 0")

    @property
    def target(self) -> str:
        return self.cache.target


class Candidate(NamedTuple):
    """A target that can take a request, as it is now."""

    spec: WorkerSpec
    overlap: Overlap = NOTHING
    load: LoadView = IDLE
    performance: Performance = _TYPICAL_PERFORMANCE
    shared_blocks: int = 0  # of the request's, in use there by others

    @property
    def target(self) -> str:
        return self.spec.cache.target


class Source(NamedTuple):
    """A target from which blocks are to be pulled."""

    target: str
    first: int  # block
    blocks: int


class Option(NamedTuple):
    """One way to serve a request, and what it costs: lower is better."""

    decode: str
    prefill: str | None  # None: the decode target computes the prompt itself
    cost: float
    names: tuple[str, ...]  # of the terms
    values: tuple[float, ...]  # which add up to the cost
    ttft_ms: float = 0.0  # predicted
    cached_tokens: int = 0  # that are not computed, predicted
    source: Source | None = None

    @property
    def terms(self) -> dict[str, float]:
        return dict(zip(self.names, self.values, strict=True))

    @property
    def computes(self) -> str:
        """The target that computes the prompt."""
        return self.prefill or self.decode
