"""What a transfer agent is told when it is made."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from stafette.kvtransfer.control.config import ControlConfig
from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.leases.config import LeaseConfig
from stafette.kvtransfer.metadata import MAX_PEER_NAME_BYTES, compatibility_digest
from stafette.kvtransfer.registry import NAMES
from stafette.kvtransfer.routes import BreakerConfig

DEFAULT_TRANSPORTS = ("shm", "tcp")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    name: str  # of this worker, unique in the cluster
    token: bytes = field(repr=False)  # the cluster's secret: who does not know it is refused
    host: str = "127.0.0.1"  # the address to listen on
    port: int = 0  # 0: any that is free
    advertised_host: str = ""  # where peers reach us; empty: host
    allow_wildcard: bool = False  # listen on every interface
    tls_server: ssl.SSLContext | None = None  # both or neither
    tls_client: ssl.SSLContext | None = None
    transports: tuple[str, ...] = DEFAULT_TRANSPORTS
    transport_options: Mapping[str, object] = field(default_factory=dict)  # by name
    compatibility: str = ""  # must be equal on both sides: model, dtype, ...
    timeout_s: float = 30.0  # of a transfer, unless it names its own
    call_timeout_s: float = 5.0  # of a question to a peer
    verify: bool = False  # compare checksums of all transfers, unless one says otherwise
    lease: LeaseConfig = LeaseConfig()
    breaker: BreakerConfig = BreakerConfig()

    def __post_init__(self) -> None:
        if not 0 < len(self.name.encode()) <= MAX_PEER_NAME_BYTES:
            remedy = f"must have 1..{MAX_PEER_NAME_BYTES} bytes"
            raise InvalidValue("agent.name", self.name, remedy)
        if not self.transports:
            raise InvalidValue("agent.transports", (), f"must name some of {', '.join(NAMES)}")
        for name in (*self.transports, *self.transport_options):
            if name not in NAMES:
                raise InvalidValue("agent.transports", name, f"must be of {', '.join(NAMES)}")
        for field_name in ("timeout_s", "call_timeout_s"):
            if not getattr(self, field_name) > 0:
                value = getattr(self, field_name)
                raise InvalidValue(f"agent.{field_name}", value, "must be above 0")
        self.control()  # checks what is its own

    def control(self) -> ControlConfig:
        return ControlConfig(
            token=self.token,
            digest=compatibility_digest(self.compatibility),
            host=self.host,
            port=self.port,
            advertised_host=self.advertised_host,
            allow_wildcard=self.allow_wildcard,
            tls_server=self.tls_server,
            tls_client=self.tls_client,
        )
