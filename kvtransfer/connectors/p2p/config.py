"""How engines pass blocks to each other: names, lifetimes and limits."""

from dataclasses import dataclass

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.extents import MAX_NAME_BYTES

_ABOVE_ZERO = (
    "read_timeout_s",
    "stall_timeout_s",
    "silence_s",
    "answer_timeout_s",
    "load_timeout_s",
    "grace_s",
    "early_s",
    "threads",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class P2pConfig:
    region: str = "kv"  # under which the pool is registered; a number follows for each share
    rank: int = 0  # of this process, among those that hold a share of every block
    num_ranks: int = 1
    lease_ttl_s: float | None = None  # of what is passed on; None: as the agent's config says
    read_timeout_s: float = 30.0  # of one piece
    stall_timeout_s: float = 30.0  # of a load of which nothing arrives, though its owners live
    silence_s: float = 2.0  # without a block, after which owners are asked whether they live
    answer_timeout_s: float = 5.0  # of that question
    grace_s: float = 5.0  # that blocks are kept for readers while nothing can run for lack of them
    load_timeout_s: float = 120.0  # of a whole load
    early_s: float = 20.0  # that news are kept of a load that has not begun
    max_early: int = 4_096  # of such news
    threads: int = 16  # that ask owners for leases

    def __post_init__(self) -> None:
        if not 0 < len(self.region.encode()) <= MAX_NAME_BYTES - 4:
            remedy = f"must have 1..{MAX_NAME_BYTES - 4} bytes"
            raise InvalidValue("p2p.region", self.region, remedy)
        if not 0 <= self.rank < self.num_ranks:
            remedy = f"must be in 0..{self.num_ranks - 1}, below num_ranks"
            raise InvalidValue("p2p.rank", self.rank, remedy)
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise InvalidValue(f"p2p.{name}", getattr(self, name), "must be above 0")
        if self.max_early < 1:
            raise InvalidValue("p2p.max_early", self.max_early, "must be at least 1")
