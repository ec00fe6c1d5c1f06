"""What both ends of a control connection are told when they are made."""

import ssl
from dataclasses import dataclass, field

from stafette.kvtransfer.errors import InvalidValue

MIN_TOKEN_BYTES = 16
MAX_DIGEST_BYTES = 64
_ABOVE_ZERO = ("handshake_timeout_s", "send_timeout_s", "close_timeout_s", "backoff_s")
_AT_LEAST_ONE = ("max_frame_bytes", "max_strangers", "max_slow_calls", "slow_threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlConfig:
    token: bytes = field(repr=False)  # the cluster's secret
    digest: bytes = b""  # must be equal on both sides
    host: str = "127.0.0.1"  # the address to listen on
    port: int = 0  # 0: any that is free
    allow_wildcard: bool = False  # listen on every interface
    advertised_host: str = ""  # where peers reach us; empty: host
    max_frame_bytes: int = 32 << 20
    handshake_timeout_s: float = 5.0  # from the connection to the end of the handshake
    send_timeout_s: float = 10.0  # for an answer to a peer that does not read
    close_timeout_s: float = 5.0
    max_strangers: int = 64  # connections that have not proved anything yet, on each listener
    max_slow_calls: int = 64  # under way on one connection
    slow_threads: int = 8
    backoff_s: float = 0.1  # after a connection that failed; doubles up to the next
    max_backoff_s: float = 2.0
    tls_server: ssl.SSLContext | None = None  # for TCP; both or neither
    tls_client: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        if len(self.token) < MIN_TOKEN_BYTES:
            remedy = f"the cluster's token must have at least {MIN_TOKEN_BYTES} bytes"
            raise InvalidValue("control.token", f"{len(self.token)} bytes", remedy)
        if len(self.digest) > MAX_DIGEST_BYTES:
            remedy = f"must have at most {MAX_DIGEST_BYTES} bytes"
            raise InvalidValue("control.digest", self.digest, remedy)
        if not 0 <= self.port < 1 << 16:
            raise InvalidValue("control.port", self.port, "must be in 0..65535")
        if self.allow_wildcard and not self.advertised_host:
            remedy = "with allow_wildcard, name the address at which peers reach this host"
            raise InvalidValue("control.advertised_host", self.advertised_host, remedy)
        if (self.tls_server is None) != (self.tls_client is None):
            remedy = "must be given together with the other one: every agent has both roles"
            raise InvalidValue("control.tls_server, tls_client", "only one", remedy)
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise InvalidValue(f"control.{name}", getattr(self, name), "must be above 0")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise InvalidValue(f"control.{name}", getattr(self, name), "must be at least 1")
        if self.max_backoff_s < self.backoff_s:
            remedy = f"must be at least backoff_s = {self.backoff_s:g}"
            raise InvalidValue("control.max_backoff_s", self.max_backoff_s, remedy)
