"""All settings of the service, in one tree, as a file or a program may give them."""

from dataclasses import dataclass, field

from stafette.kvtransfer.event_stream.link import SubscriberConfig
from stafette.router.admission import AdmissionConfig
from stafette.router.errors import InvalidValue
from stafette.router.router import RouterConfig
from stafette.router.service.gossip import GossipConfig

_LEAST = {"port": 0, "block_size": 1, "max_body_bytes": 1, "max_in_flight": 1, "max_sessions": 0}
_ABOVE_ZERO = ("body_timeout_s", "keep_alive_s", "drain_timeout_s", "max_wait_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    host: str = "127.0.0.1"  # 0.0.0.0: every interface; then set a token
    port: int = 8090  # 0: any that is free
    block_size: int = 16  # tokens; that of all workers
    max_body_bytes: int = 8 << 20
    body_timeout_s: float = 10.0  # for a request to arrive in
    max_in_flight: int = 4_096  # requests, those that wait included; more are refused with 429
    max_wait_s: float = 60.0  # of a select, for a free worker
    max_sessions: int = 10_000  # whose latest prompt is remembered, to hash only what is new
    keep_alive_s: float = 75.0  # a connection without a request
    drain_timeout_s: float = 10.0  # for what is in flight at the end
    tls_certfile: str | None = None
    tls_keyfile: str | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InvalidValue(f"service.{name}", getattr(self, name), f"must be >= {least}")
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise InvalidValue(f"service.{name}", getattr(self, name), "must be above 0")
        if self.port > 65_535:
            raise InvalidValue("service.port", self.port, "must be at most 65535")
        if self.tls_keyfile is not None and self.tls_certfile is None:
            raise InvalidValue("service.tls_keyfile", self.tls_keyfile, "needs tls_certfile too")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterServiceConfig:
    service: ServiceConfig = ServiceConfig()
    router: RouterConfig = RouterConfig()
    admission: AdmissionConfig = AdmissionConfig()
    events: SubscriberConfig = SubscriberConfig()
    gossip: GossipConfig = GossipConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What no file of settings should hold."""

    key: bytes = field(repr=False)  # the cluster's: of the block hashes, and between routers
    token: str | None = field(default=None, repr=False)  # of the clients; None: anybody may ask

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token and self.token.isascii()):
            raise InvalidValue("token", "(secret)", "must be ASCII, and not empty")
