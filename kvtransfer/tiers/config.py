"""What the tiers of a worker are told: how large, by which policy, where, and what may wait."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.tiers.admission import check_admission
from stafette.kvtransfer.tiers.registry import DEFAULT_POLICY, check_policy

WriteWhen = Literal["eviction", "arrival"]

MAX_BATCH_BLOCKS = 512  # fits into one preadv, whose limit is 1,024 pieces
_BATCHES_ON_HOST = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """Memory of this process, which peers on this host can map."""

    capacity_bytes: int = 0  # this or num_blocks
    num_blocks: int = 0
    policy: str = DEFAULT_POLICY
    pin_share: float = 0.5  # of the tier that `pin` may hold
    huge_pages: bool = False  # make all of it resident at the start: seconds, but quicker then

    def __post_init__(self) -> None:
        _check_size("host", self.capacity_bytes, self.num_blocks)
        check_policy("host.policy", self.policy)
        if not 0 <= self.pin_share < 1:
            raise InvalidValue("host.pin_share", self.pin_share, "must be at least 0, below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskConfig:
    """A folder for this worker alone. What is in it survives a restart."""

    folder: Path
    capacity_bytes: int = 0  # this or num_blocks
    num_blocks: int = 0
    policy: str = DEFAULT_POLICY
    admission: str = "adaptive"  # which of the blocks that leave the host are written
    write: WriteWhen = "eviction"  # when they leave the host, or as soon as they come there
    direct: bool = True  # past the page cache, where blocks are multiples of 4 KiB
    sync: bool = False  # fdatasync every batch: checksums make it unnecessary
    preallocate: bool = True  # so that the disk cannot be full later
    replace: bool = True  # drop what another model left there, instead of refusing to start
    max_errors: int = 3  # in a row; then there is no disk tier until a restart
    stall_s: float = 10.0  # one read or write may take that long
    lock_timeout_s: float = 5.0  # for the worker before to die

    def __post_init__(self) -> None:
        _check_size("disk", self.capacity_bytes, self.num_blocks)
        check_policy("disk.policy", self.policy)
        check_admission("disk.admission", self.admission)
        if self.write not in get_args(WriteWhen):
            remedy = f"must be {' or '.join(get_args(WriteWhen))}"
            raise InvalidValue("disk.write", self.write, remedy)
        if self.max_errors < 1:
            raise InvalidValue("disk.max_errors", self.max_errors, "must be at least 1")
        _check_above_zero("disk", self, ("stall_s", "lock_timeout_s"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TiersConfig:
    host: HostConfig
    disk: DiskConfig | None = None
    compatibility: str = ""  # model, dtype, layout: blocks of another are never used
    batch_bytes: int = 16 << 20  # are copied, or read, in one go
    disk_threads: int = 2
    peer_threads: int = 2
    max_offload_blocks: int = 4_096  # waiting; more are dropped
    max_demote_blocks: int = 1_024  # waiting to be written to disk, from where they leave
    max_onboard_blocks: int = 16_384  # under way; more are refused
    onboard_timeout_s: float = 5.0  # unless the call says otherwise
    offload_timeout_s: float = 30.0  # in the queue; the device's slots are held so long
    preheat_timeout_s: float = 300.0
    patience_s: float = 0.5  # that an offload waits for a slot of the host to be written to disk
    close_timeout_s: float = 10.0
    save_on_close: bool = True  # write what is only on the host to disk, as far as time permits

    def __post_init__(self) -> None:
        others = ("compatibility", "save_on_close", "host", "disk")
        numbers = (f.name for f in fields(self) if f.name not in others)
        _check_above_zero("tiers", self, numbers)

    def batch_blocks(self, block_bytes: int, host_blocks: int) -> int:
        """Return how many blocks are moved in one go; several such batches fit on the host."""
        most = min(MAX_BATCH_BLOCKS, host_blocks // _BATCHES_ON_HOST)
        return max(1, min(most, self.batch_bytes // block_bytes))


def num_blocks(config: HostConfig | DiskConfig, block_bytes: int) -> int:
    """Return the size of a tier in blocks."""
    count = config.num_blocks or config.capacity_bytes // block_bytes
    if count < 1:
        remedy = f"must be at least one block of {block_bytes} bytes"
        raise InvalidValue("capacity_bytes", config.capacity_bytes, remedy)
    return count


def _check_size(tier: str, capacity_bytes: int, blocks: int) -> None:
    if capacity_bytes < 0 or blocks < 0 or bool(capacity_bytes) == bool(blocks):
        remedy = "exactly one of the two must be above 0"
        raise InvalidValue(f"{tier}.capacity_bytes, num_blocks", (capacity_bytes, blocks), remedy)


def _check_above_zero(prefix: str, config: object, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise InvalidValue(f"{prefix}.{name}", value, "must be above 0")
