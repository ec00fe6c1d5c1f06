"""What is to be served, by whom, and how fast that is."""

from dataclasses import dataclass, replace

from stafette.platform.planner.shape import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """`backlog_ms` of prefilling are to be done beside what comes, each second."""

    rate: float  # requests a second
    shape: Shape
    dispersion: float = 1.0
    backlog_ms: float = 0.0
    least_decode: int = 1  # workers, for what runs already
    local_ms: float = 0.0  # of prefilling that each request costs the worker that decodes it

    @property
    def lasting(self) -> "Demand":
        """Return what is to be served when nothing is piled up any more."""
        return replace(self, backlog_ms=0.0) if self.backlog_ms else self


@dataclass(frozen=True, slots=True)
class Split:
    """Workers by role."""

    prefill: int = 0
    decode: int = 0
    both: int = 0

    @property
    def total(self) -> int:
        return self.prefill + self.decode + self.both


@dataclass(frozen=True, slots=True)
class Speeds:
    """What a split is expected to give, at the promised percentiles."""

    ttft_ms: float
    itl_ms: float
    fits: bool = True  # there is room for what decodes
