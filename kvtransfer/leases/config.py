"""How long leases live."""

from dataclasses import dataclass

from stafette.kvtransfer.errors import InvalidValue


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseConfig:
    """The defaults are vLLM's: 30 s, a heartbeat every 5 s, which brings it back to 20 s."""

    ttl_s: float = 30.0  # of a grant that names none
    heartbeats: int = 6  # in the time that a lease has left without them
    extension: float = 2 / 3  # of the first ttl: what a heartbeat gives at least
    max_life_s: float = 600.0  # with all heartbeats, and with reads that are still under way
    max_leases: int = 1 << 16  # that live at the same time

    def __post_init__(self) -> None:
        if not 0 < self.ttl_s <= self.max_life_s:
            remedy = f"must be above 0 and at most max_life_s, {self.max_life_s:g}"
            raise InvalidValue("lease.ttl_s", self.ttl_s, remedy)
        if self.heartbeats < 2:
            raise InvalidValue("lease.heartbeats", self.heartbeats, "must be at least 2")
        if not 0 < self.extension <= 1:
            raise InvalidValue("lease.extension", self.extension, "must be above 0, at most 1")
        if self.max_leases < 1:
            raise InvalidValue("lease.max_leases", self.max_leases, "must be at least 1")
