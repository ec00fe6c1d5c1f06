"""What both ends of a worker's stream are told when they are made."""

from dataclasses import dataclass, field
from typing import Literal

from stafette.workers.errors import ConfigError

MIN_TOKEN_BYTES = 16
_ABOVE_ZERO = ("handshake_timeout_s", "beat_s", "stop_timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    token: bytes = field(repr=False)  # the cluster's secret: who does not know it is refused
    host: str = "127.0.0.1"  # the address to listen on
    port: int = 0  # 0: any that is free
    stream: Literal["grpc", "tcp"] = "grpc"  # or tcp, which costs less; the same at both ends
    advertised_host: str = ""  # where frontends reach us; empty: host
    max_message_bytes: int = 16 << 20
    max_unsent_bytes: int = 32 << 20  # for a frontend that does not read; beyond, it is dropped
    max_requests: int = 4_096  # under way on one stream
    handshake_timeout_s: float = 5.0
    beat_s: float = 1.0  # each end says at least so often that it lives, and its load
    silence_s: float = 5.0  # who says nothing for so long is lost
    stop_timeout_s: float = 5.0
    tls_key: bytes | None = field(default=None, repr=False)  # PEM; of the server
    tls_certificate: bytes | None = None  # PEM; of the server
    tls_authority: bytes | None = None  # PEM; the client checks the server against it

    def __post_init__(self) -> None:
        if len(self.token) < MIN_TOKEN_BYTES:
            remedy = f"the cluster's token must have at least {MIN_TOKEN_BYTES} bytes"
            raise ConfigError("service.token", f"{len(self.token)} bytes", remedy)
        if not 0 <= self.port < 1 << 16:
            raise ConfigError("service.port", self.port, "must be in 0..65535")
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise ConfigError(f"service.{name}", getattr(self, name), "must be above 0")
        for name in ("max_message_bytes", "max_unsent_bytes", "max_requests"):
            if getattr(self, name) < 1:
                raise ConfigError(f"service.{name}", getattr(self, name), "must be at least 1")
        if self.silence_s < 2 * self.beat_s:
            remedy = f"must be at least two beats of {self.beat_s:g} s"
            raise ConfigError("service.silence_s", self.silence_s, remedy)
        if (self.tls_key is None) != (self.tls_certificate is None):
            remedy = "must be given together: the server shows the one and proves it by the other"
            raise ConfigError("service.tls_key, tls_certificate", "only one", remedy)
