"""How long it takes to bring blocks to a target: from its own slower tiers, or from another one."""

from dataclasses import dataclass, fields

from stafette.router.errors import InvalidValue
from stafette.router.request import WorkerSpec

BYTES_PER_MS = 1e6  # of 1 GB/s


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferConfig:
    host_tier_gb_s: float = 20.0
    disk_tier_gb_s: float = 3.0
    peer_tier_gb_s: float = 5.0
    same_host_gb_s: float = 20.0  # from target to target
    same_rack_gb_s: float = 10.0
    far_gb_s: float = 2.0
    same_host_ms: float = 0.2  # before the first byte
    same_rack_ms: float = 0.5
    far_ms: float = 2.0
    pull: bool = True  # blocks that another target holds, where that is faster than to compute them

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_gb_s") and not value > 0:
                raise InvalidValue(f"transfer.{field.name}", value, "must be above 0")
            if field.name.endswith("_ms") and not value >= 0:
                raise InvalidValue(f"transfer.{field.name}", value, "must be at least 0")


def tier_ms(blocks: tuple[int, int, int], block_bytes: int, config: TransferConfig) -> float:
    """Return the time to load blocks from (host, disk, peer) to the device."""
    host, disk, peer = blocks
    per_gb_s = (
        host / config.host_tier_gb_s + disk / config.disk_tier_gb_s + peer / config.peer_tier_gb_s
    )
    return per_gb_s * block_bytes / BYTES_PER_MS


def links(config: TransferConfig) -> tuple[tuple[float, float], ...]:
    """Return of each kind of way its latency in milliseconds and its milliseconds per byte.

    The kinds are: within a host, within a rack, far.
    """
    return (
        _way(config.same_host_ms, config.same_host_gb_s),
        _way(config.same_rack_ms, config.same_rack_gb_s),
        _way(config.far_ms, config.far_gb_s),
    )


def link(one: WorkerSpec, other: WorkerSpec, config: TransferConfig) -> tuple[float, float]:
    """Return the latency in milliseconds and the milliseconds per byte between two targets."""
    if one.host and one.host == other.host:
        return _way(config.same_host_ms, config.same_host_gb_s)
    if one.rack and one.rack == other.rack:
        return _way(config.same_rack_ms, config.same_rack_gb_s)
    return _way(config.far_ms, config.far_gb_s)


def _way(latency_ms: float, gb_s: float) -> tuple[float, float]:
    return latency_ms, 1 / (gb_s * BYTES_PER_MS)


def transfer_ms(
    one: WorkerSpec, other: WorkerSpec, num_blocks: int, config: TransferConfig
) -> float:
    if num_blocks <= 0:
        return 0.0
    latency_ms, ms_per_byte = link(one, other, config)
    return latency_ms + num_blocks * one.block_bytes * ms_per_byte
