"""What a transfer agent is told when it is made."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.metadata import MAX_PEER_NAME_BYTES
from stafette.kvtransfer.registry import NAMES
from stafette.kvtransfer.routes import BreakerConfig

DEFAULT_TRANSPORTS = ("shm", "tcp")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    name: str  # of this worker, unique in the cluster
    token: bytes  # the cluster's secret: who does not know it is refused
    host: str = "127.0.0.1"  # where peers reach us
    port: int = 0  # 0: any that is free
    transports: tuple[str, ...] = DEFAULT_TRANSPORTS
    transport_options: Mapping[str, object] = field(default_factory=dict)  # by name
    compatibility: str = ""  # must be equal on both sides: model, dtype, ...
    timeout_s: float = 30.0  # of a transfer, unless it names its own
    call_timeout_s: float = 5.0  # of a question to a peer
    verify: bool = False  # compare checksums of all transfers, unless one says otherwise
    lease_s: float = 30.0  # of a grant, unless it names its own
    breaker: BreakerConfig = BreakerConfig()

    def __post_init__(self) -> None:
        if not 0 < len(self.name.encode()) <= MAX_PEER_NAME_BYTES:
            remedy = f"must have 1..{MAX_PEER_NAME_BYTES} bytes"
            raise InvalidValue("agent.name", self.name, remedy)
        if len(self.token) < 16:
            remedy = "the cluster's token must have at least 16 bytes"
            raise InvalidValue("agent.token", f"{len(self.token)} bytes", remedy)
        for name in self.transports:
            if name not in NAMES:
                raise InvalidValue("agent.transports", name, f"must be of {', '.join(NAMES)}")
        for field_name in ("timeout_s", "call_timeout_s", "lease_s"):
            if not getattr(self, field_name) > 0:
                value = getattr(self, field_name)
                raise InvalidValue(f"agent.{field_name}", value, "must be above 0")
