"""How long blocks take between a mock worker's pool and the tiers below it."""

from dataclasses import dataclass

from stafette.workers.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSpeed:
    """How fast the tiers of one worker are."""

    host_gb_s: float = 20.0  # between the device and the host, either way
    disk_read_gb_s: float = 3.0
    disk_write_gb_s: float = 2.0
    disk_latency_ms: float = 0.2  # of each batch

    def __post_init__(self) -> None:
        for name in ("host_gb_s", "disk_read_gb_s", "disk_write_gb_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"tier_speed.{name}", getattr(self, name), "must be above 0")
        if not self.disk_latency_ms >= 0:
            value = self.disk_latency_ms
            raise ConfigError("tier_speed.disk_latency_ms", value, "must be at least 0")

    def seconds(self, lane: str, nbytes: int, urgent: bool) -> float:
        """Return how long a batch takes: what is urgent goes up, towards the device."""
        if lane == "tiers-copy":
            return nbytes / (self.host_gb_s * 1e9)
        rate = self.disk_read_gb_s if urgent else self.disk_write_gb_s
        return self.disk_latency_ms / 1e3 + nbytes / (rate * 1e9)
