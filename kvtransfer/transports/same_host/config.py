"""How shm and process_vm read."""

from dataclasses import dataclass

from stafette.kvtransfer.errors import InvalidValue


@dataclass(frozen=True, slots=True, kw_only=True)
class SameHostConfig:
    """What a reader does for each of its peers."""

    inline_bytes: int = 256 << 10  # up to here a job is done by whoever posts it
    threads: int = 2  # for the others
    open_timeout_s: float = 5.0  # for a peer's answer about a region

    def __post_init__(self) -> None:
        if self.inline_bytes < 0:
            raise InvalidValue("inline_bytes", self.inline_bytes, "must be at least 0")
        if self.threads < 1:
            raise InvalidValue("threads", self.threads, "must be at least 1")
        if not self.open_timeout_s > 0:
            raise InvalidValue("open_timeout_s", self.open_timeout_s, "must be above 0")
