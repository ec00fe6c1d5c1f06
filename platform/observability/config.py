"""Where metrics and traces are told."""

from dataclasses import dataclass
from typing import Literal

from stafette.platform.frontend.errors import InvalidSetting


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    host: str = "127.0.0.1"  # to listen on; 0.0.0.0: every interface, for a Prometheus elsewhere
    port: int | None = None  # of each node, for all processes there; None: only the API's /metrics
    ask_timeout_s: float = 2.0  # for one process to tell what it counts
    max_processes: int = 256  # of a node, that are shown

    def __post_init__(self) -> None:
        if self.port is not None and not 0 < self.port < 1 << 16:
            raise InvalidSetting("metrics.port", self.port, "must be in 1..65535, or null for none")
        if not self.ask_timeout_s > 0:
            raise InvalidSetting("metrics.ask_timeout_s", self.ask_timeout_s, "must be above 0")
        if self.max_processes < 1:
            raise InvalidSetting("metrics.max_processes", self.max_processes, "must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingConfig:
    endpoint: str | None = None  # of an OTLP collector, such as http://otel:4317; None: no traces
    protocol: Literal["grpc", "http"] = "grpc"
    sample_ratio: float = 1.0  # of the traces that begin here; a client's own choice goes first
    export_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            remedy = "must begin with http:// or https://, as in http://otel:4317"
            raise InvalidSetting("tracing.endpoint", self.endpoint, remedy)
        if not 0 <= self.sample_ratio <= 1:
            raise InvalidSetting("tracing.sample_ratio", self.sample_ratio, "must be in 0..1")
        if not self.export_timeout_s > 0:
            value, remedy = self.export_timeout_s, "must be above 0"
            raise InvalidSetting("tracing.export_timeout_s", value, remedy)
