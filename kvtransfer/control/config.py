"""What both ends of a control connection are told when they are made."""

import ssl
from dataclasses import dataclass, field

from stafette.kvtransfer.errors import InvalidValue

MIN_TOKEN_BYTES = 16
MAX_DIGEST_BYTES = 64
MIN_FRAME_BYTES = 64 << 10  # the longest error fits
_ABOVE_ZERO = ("handshake_timeout_s", "send_timeout_s", "close_timeout_s", "backoff_s")
_AT_LEAST_ONE = ("max_strangers", "max_slow_calls", "slow_threads")
_NEW_TLS = (ssl.TLSVersion.MAXIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_3)


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
    tls_server: ssl.SSLContext | None = None  # for TCP, of version 1.3; both or neither
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
        self._check_tls("tls_server", self.tls_server, ssl.PROTOCOL_TLS_CLIENT)
        self._check_tls("tls_client", self.tls_client, ssl.PROTOCOL_TLS_SERVER)
        self._check_numbers()

    def _check_tls(
        self, name: str, context: ssl.SSLContext | None, wrong_side: ssl._SSLMethod
    ) -> None:
        if context is None:
            return
        if context.protocol is wrong_side:
            remedy = "must be a context of the other side"
            raise InvalidValue(f"control.{name}.protocol", context.protocol.name, remedy)
        if context.maximum_version not in _NEW_TLS:
            version = context.maximum_version.name
            raise InvalidValue(f"control.{name}.maximum_version", version, "must allow TLSv1_3")

    def _check_numbers(self) -> None:
        if not MIN_FRAME_BYTES <= self.max_frame_bytes < 1 << 32:
            remedy = f"must be in {MIN_FRAME_BYTES}..2**32 - 1"
            raise InvalidValue("control.max_frame_bytes", self.max_frame_bytes, remedy)
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise InvalidValue(f"control.{name}", getattr(self, name), "must be above 0")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise InvalidValue(f"control.{name}", getattr(self, name), "must be at least 1")
        if self.max_backoff_s < self.backoff_s:
            remedy = f"must be at least backoff_s = {self.backoff_s:g}"
            raise InvalidValue("control.max_backoff_s", self.max_backoff_s, remedy)
